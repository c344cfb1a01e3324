"""Outlier share against what it is defined as."""

import pytest
import torch
from unreached import unreached

from ecoflap import Replay
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.scorers.outlier_share import OutlierShare


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def test_outlier_share_is_over_all_matrices_of_a_block(replay):
    """Inputs are read with hooks on the plain forward here."""
    norms: dict[str, torch.Tensor] = {}
    handles = [
        layer.module.register_forward_hook(
            lambda _, inputs, __, name=layer.name: norms.__setitem__(
                name, norms.get(name, 0) + inputs[0].double().square().sum((0, 1))
            )
        )
        for layer in all_layers(replay)
    ]
    with torch.no_grad():
        for batch in replay.batches:
            replay.adapter.loss(replay.model, batch)
    for handle in handles:
        handle.remove()
    scores = dict(OutlierShare(threshold=2.0)(replay, all_layers(replay)))
    assert list(scores) == [block.name for block in replay.blocks]
    for block in replay.blocks:
        layers = replay.anatomy.layers_of[block.name]
        metrics = torch.cat([(x.weight.data.double().abs() * norms[x.name].sqrt()).flatten() for x in layers])
        share = 100 * float((metrics > 2 * metrics.mean()).double().mean())
        assert scores[block.name] == pytest.approx(share, abs=100 * 2 / len(metrics))
        assert 1 < share < 50


def test_an_expert_that_no_token_reached_counts_for_nothing():
    """Its block's share is that of the block's other layers; it is 0 where none of them is looked at."""
    replay, left = unreached()
    fed = [layer for layer in all_layers(replay) if layer.name not in left]
    unfed = [layer for layer in all_layers(replay) if layer.name in left]
    scorer = OutlierShare(threshold=2.0)
    assert dict(scorer(replay, all_layers(replay))) == dict(scorer(fresh(replay), fed))
    assert set(dict(scorer(fresh(replay), unfed)).values()) == {0.0}


def fresh(replay):
    return Replay(replay.model, replay.adapter, replay.batches, anatomy=replay.anatomy)


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"samples": 0}])
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(EcoflapError, match=f"{next(iter(wrong))} is 0"):
        OutlierShare(**wrong)
