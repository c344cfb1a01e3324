"""Magnitude and outlier share against what they are defined as, and scores taken over from a run."""

import json

import pytest
import torch
from plan_contexts import context

from ecoflap import EcoflapError, Estimate, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.pruning.scores import header_line, score_line
from ecoflap.plugins.scorers.from_run import FromRun
from ecoflap.plugins.scorers.magnitude import MagnitudeScore
from ecoflap.plugins.scorers.outlier_share import OutlierShare


@pytest.fixture
def replay(pico_llama):
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 60, (2, 16), generator=generator) for _ in range(2)]
    return Replay(pico_llama(), LlamaAdapter(), [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids])


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def test_magnitude_is_the_sum_of_absolute_weights(replay):
    for (name, score), layer in zip(MagnitudeScore()(replay, all_layers(replay)), all_layers(replay), strict=True):
        assert name == layer.name
        assert score == pytest.approx(float(layer.weight.data.double().abs().sum()), rel=1e-6)


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


def test_scores_of_another_run(replay, tmp_path):
    names = [layer.name for layer in all_layers(replay)]
    lines = [
        header_line("layer", "mean"),
        *(score_line(name, Estimate([float(i), i + 1.0])) for i, name in enumerate(names)),
    ]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scorer = FromRun(tmp_path)
    assert (scorer.unit, scorer.aggregate) == ("layer", "mean")
    assert [float(score) for _, score in scorer(replay, all_layers(replay)[2:4])] == [2.5, 3.5]
    assert next(iter(scorer(replay, all_layers(replay)[2:3])))[1].terms == (2.0, 3.0)


def test_scores_of_another_run_that_lacks_some(replay, tmp_path):
    (tmp_path / "scores.jsonl").write_text(json.dumps(header_line("layer", "sum")) + "\n")
    with pytest.raises(EcoflapError, match=r"has no score for model.layers.0.self_attn.q_proj.weight"):
        list(FromRun(tmp_path)(replay, all_layers(replay)))
    with pytest.raises(EcoflapError, match="no such file; scores are there once a run has scored"):
        list(FromRun(tmp_path / "nowhere")(replay, all_layers(replay)))


def test_a_plan_hears_of_scores_that_are_not_there_or_of_another_model(replay, tmp_path):
    def said(*lines):
        (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return list(FromRun(tmp_path).problems(context(anatomy=replay.anatomy)))

    blocks = [score_line(block.name, 1.0) for block in replay.blocks]
    assert said(header_line("block", "mean"), *blocks) == []
    assert said(header_line("layer", "mean"), *blocks) == [
        f"{tmp_path}: its scores are of another model; none is for a layer of this one"
    ]
    (tmp_path / "scores.jsonl").unlink()
    (problem,) = FromRun(tmp_path).problems(context(anatomy=replay.anatomy))
    assert "no such file; scores are there once a run has scored" in problem


@pytest.mark.parametrize("wrong", [{"threshold": 0.0}, {"samples": 0}])
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 0"):
        OutlierShare(**wrong)
