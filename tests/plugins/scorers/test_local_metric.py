"""The local metric against its formula, with inputs that hooks see."""

import pytest
import torch
from unreached import unreached

from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.metrics.magnitude import Magnitude
from ecoflap.plugins.metrics.magnitude_gradient import MagnitudeGradient
from ecoflap.plugins.metrics.optimal_brain_surgeon import OptimalBrainSurgeon
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


def test_the_mean_of_any_metric(replay):
    layers = [layer for _, layer in replay.anatomy.layers()]
    plain = dict(LocalMetric(metric=Magnitude())(replay, layers))
    for layer in layers:
        assert plain[layer.name] == pytest.approx(float(layer.weight.data.double().abs().mean()), rel=1e-6)
    inputs = inputs_of(replay, layers)
    scores = dict(LocalMetric(metric=OptimalBrainSurgeon())(replay, layers))
    for layer in layers:
        x = inputs[layer.name]
        h = x.T @ x
        h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
        u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
        metric = layer.weight.data.double().square() / u.diagonal().square()
        assert scores[layer.name] == pytest.approx(float(metric.mean()), rel=1e-3)


def inputs_of(replay, layers):
    """All inputs of each layer of the dense model, in float64, as hooks see them."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.module.register_forward_hook(
            lambda _, inputs, __, name=layer.name: seen.setdefault(name, []).append(inputs[0].double().flatten(0, 1))
        )
        for layer in layers
    ]
    with torch.no_grad():
        for batch in replay.batches:
            replay.adapter.loss(replay.model, batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(some) for name, some in seen.items()}


def test_what_the_metric_needs_is_asked_of_the_recipe():
    assert LocalMetric().data
    assert LocalMetric().shares
    assert not LocalMetric(metric=Magnitude()).data
    assert not LocalMetric(metric=MagnitudeGradient()).shares


def test_an_answer_that_is_no_number_a_weight_is_named(replay):
    class Answers:
        def __call__(self, weight, seen):
            return weight.sum()

    with pytest.raises(EcoflapError, match=r"the metric Answers gave torch\.float32 of \(\); it gives one floating"):
        list(LocalMetric(metric=Answers())(replay, [layer for _, layer in replay.anatomy.layers()]))


def test_an_expert_that_no_token_reached_counts_for_nothing():
    replay, left = unreached()
    scores = dict(LocalMetric()(replay, [layer for _, layer in replay.anatomy.layers()]))
    assert [name for name, score in scores.items() if not score] == left


def test_parameters_out_of_range_are_refused_by_name():
    with pytest.raises(EcoflapError, match="samples is 0"):
        LocalMetric(samples=0)
