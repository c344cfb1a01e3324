"""The local metric against its formula, with inputs that hooks see."""

import pytest
import torch
from unreached import unreached

from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.scorers.local_metric import LocalMetric


def test_the_mean_of_wandas_metric(replay):
    layers = [layer for _, layer in replay.anatomy.layers()]
    norms: dict[str, torch.Tensor] = {}
    for layer in layers:
        layer.module.register_forward_hook(
            lambda _, inputs, __, name=layer.name: norms.__setitem__(
                name, norms.get(name, 0) + inputs[0].double().square().sum((0, 1))
            )
        )
    with torch.no_grad():
        for batch in replay.batches:
            replay.adapter.loss(replay.model, batch)
    seen = dict(norms)  # before the replay's own forwards are added
    scores = dict(LocalMetric()(replay, layers[3:]))
    assert list(scores) == [layer.name for layer in layers[3:]]
    for layer in layers[3:]:
        metric = layer.weight.data.double().abs() * seen[layer.name].sqrt()
        assert scores[layer.name] == pytest.approx(float(metric.mean()), rel=1e-5)


def test_an_expert_that_no_token_reached_counts_for_nothing():
    replay, left = unreached()
    scores = dict(LocalMetric()(replay, [layer for _, layer in replay.anatomy.layers()]))
    assert [name for name, score in scores.items() if not score] == left


def test_parameters_out_of_range_are_refused_by_name():
    with pytest.raises(EcoflapError, match="samples is 0"):
        LocalMetric(samples=0)
