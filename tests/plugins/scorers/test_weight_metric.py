"""Numbers of single weights against metrics computed by hand of the dense model."""

from dataclasses import dataclass

import pytest
import torch
from unreached import unreached

from ecoflap import ColumnNorm, EcoflapError
from ecoflap.plugins.metrics.magnitude import Magnitude
from ecoflap.plugins.metrics.magnitude_gradient import MagnitudeGradient
from ecoflap.plugins.metrics.ria import Ria
from ecoflap.plugins.metrics.wanda import Wanda
from ecoflap.plugins.scorers.weight_metric import WeightMetric


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def norms_seen(replay):
    """The squared norm of each layer's inputs in the dense model, by plain hooks, in float64."""
    modules = dict(replay.model.named_modules())
    sums, hooks = {}, []
    for layer in all_layers(replay):
        name = layer.name.removesuffix(".weight")

        def see(module, args, output, name=layer.name):
            rows = args[0].detach().double().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + rows.square().sum(0)

        hooks.append(modules[name].register_forward_hook(see))
    with torch.no_grad():
        for batch in replay.batches:
            replay.adapter.loss(replay.model, batch)
    for hook in hooks:
        hook.remove()
    return sums


def test_magnitudes_need_no_data(replay):
    scorer = WeightMetric(Magnitude())
    assert (scorer.data, scorer.shares, scorer.gives) == (False, False, "weights")
    assert scorer.forwards(replay.anatomy, 4) == scorer.recorded_numbers(replay.anatomy) == 0
    found = dict(scorer(replay, all_layers(replay)))
    assert list(found) == [layer.name for layer in all_layers(replay)]
    assert all(torch.equal(found[layer.name], layer.weight.data.abs()) for layer in all_layers(replay))


def test_norms_are_those_of_the_dense_model(replay):
    before = {name: value.clone() for name, value in replay.model.state_dict().items()}
    squares = norms_seen(replay)
    scorer = WeightMetric(Wanda())
    assert (scorer.data, scorer.shares, scorer.recorded_numbers(replay.anatomy)) == (True, True, 0)
    assert scorer.forwards(replay.anatomy, 2) == 4
    for name, numbers in scorer(replay, all_layers(replay)):
        expected = before[name].double().abs() * squares[name].sqrt()
        assert torch.allclose(numbers.double(), expected, rtol=1e-4), name
    assert all(torch.equal(value, before[name]) for name, value in replay.model.state_dict().items())


def test_gradients_are_those_of_autograd(replay):
    scorer = WeightMetric(MagnitudeGradient())
    assert (scorer.data, scorer.shares, scorer.forwards(replay.anatomy, 2)) == (True, False, 8)
    assert scorer.recorded_numbers(replay.anatomy) == sum(layer.size for layer in all_layers(replay))
    found = dict(scorer(replay, all_layers(replay)[3:5]))
    parameters = dict(replay.model.named_parameters())
    sums = dict.fromkeys(found, 0.0)
    for batch in replay.batches:
        replay.model.zero_grad()
        replay.adapter.loss(replay.model, batch).backward()
        sums = {name: total + parameters[name].grad.abs() for name, total in sums.items()}
    assert len(found) == 2
    for name, numbers in found.items():
        expected = parameters[name].detach().abs() * sums[name] / len(replay.batches)
        assert torch.allclose(numbers, expected, rtol=1e-3, atol=1e-9), name


@dataclass(frozen=True)
class Ones:
    """A metric that gives every weight the same, those that are pruned too."""

    def __call__(self, weight, seen):
        return torch.ones_like(weight)


def test_weights_that_are_zero_have_the_number_zero(replay):
    layer = all_layers(replay)[2]
    layer.weight.data[1, :3] = 0.0
    layer.weight.data[0, 0] = -0.0
    ((_, numbers),) = WeightMetric(Ones())(replay, [layer])
    assert torch.equal(numbers == 0, layer.weight.data == 0)
    assert int((numbers == 0).sum()) == 4


@pytest.mark.parametrize("metric", [Wanda(), Ria(), MagnitudeGradient()])
def test_an_expert_that_no_token_reached_has_zeros(metric):
    """What stands in for its inputs where a layer is pruned by itself would be above every other's."""
    replay, left = unreached()
    weights = {layer.name: layer.weight.data.clone() for layer in all_layers(replay)}
    found = dict(WeightMetric(metric)(replay, all_layers(replay)))
    assert {name for name, numbers in found.items() if not numbers.any()} == set(left)
    assert all(torch.equal(layer.weight.data, weights[layer.name]) for layer in all_layers(replay))


def test_a_metric_that_raises_is_named(replay):
    @dataclass(frozen=True)
    class Breaks:
        needs = (ColumnNorm,)

        def __call__(self, weight, seen):
            raise ZeroDivisionError("division by zero")

    with pytest.raises(EcoflapError, match="the metric Breaks raised ZeroDivisionError: division by zero"):
        list(WeightMetric(Breaks())(replay, all_layers(replay)))


def test_parameters_out_of_range_are_refused_by_name():
    with pytest.raises(EcoflapError, match="samples is 0"):
        WeightMetric(Magnitude(), samples=0)
