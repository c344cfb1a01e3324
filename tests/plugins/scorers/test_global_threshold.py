"""Global pruning against a sort over all weights of the model, and against autograd."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from plan_contexts import context
from unreached import unreached

import ecoflap
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.ecoflap import Ecoflap
from ecoflap.plugins.metrics.magnitude_gradient import MagnitudeGradient
from ecoflap.plugins.pruners.by_metric import ByMetric
from ecoflap.plugins.scorers.global_threshold import GlobalThreshold


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def kept_by_sorting(metrics, sparsity):
    """Which weights of each layer are among the largest of all."""
    values = np.concatenate([metric.flatten() for metric in metrics.values()])
    keep = int(len(values) * (1 - sparsity))
    threshold = np.sort(values)[::-1][keep - 1]
    return {name: metric >= threshold for name, metric in metrics.items()}


def by_autograd(replay):
    """|W|·mean |g| of each weight, by a plain backward for each batch."""
    parameters = dict(replay.model.named_parameters())
    sums = {layer.name: 0.0 for layer in all_layers(replay)}
    for batch in replay.batches:
        replay.model.zero_grad()
        replay.adapter.loss(replay.model, batch).backward()
        sums = {name: total + parameters[name].grad.abs().numpy() for name, total in sums.items()}
    replay.model.zero_grad()
    count = len(replay.batches)
    return {name: parameters[name].detach().abs().numpy() * total / count for name, total in sums.items()}


def test_magnitudes_of_all_layers_share_one_threshold(replay):
    weights = {layer.name: np.abs(layer.weight.detach().numpy()) for layer in all_layers(replay)}
    expected = {name: float(mask.sum()) for name, mask in kept_by_sorting(weights, 0.7).items()}
    assert dict(GlobalThreshold(0.7)(replay, all_layers(replay))) == expected
    assert len({count / weights[name].size for name, count in expected.items()}) > 1


@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_are_taken_anew_of_what_each_step_leaves(replay, steps):
    """Steps of s^(I/i) as in the paper's code: 0.125, 0.354 and 0.5 of three for a half."""
    before = {name: tensor.clone() for name, tensor in replay.model.state_dict().items()}
    scorer = GlobalThreshold(0.5, measure="magnitude_gradient", steps=steps)
    found = dict(scorer(replay, all_layers(replay)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in replay.model.state_dict().items())
    for step in range(1, steps + 1):
        masks = kept_by_sorting(by_autograd(replay), 0.5 ** (steps / step))
        for layer in all_layers(replay):
            layer.weight.data.mul_(torch.from_numpy(masks[layer.name]))
    for name, mask in masks.items():
        assert abs(found[name] - mask.sum()) <= 2  # two ways to add gradients may put one weight on the other side
    assert sum(found.values()) == sum(mask.size for mask in masks.values()) // 2


def test_with_the_metric_of_its_name_masks_are_those_of_one_sort_over_all_weights(replay):
    """Global pruning by |W|·|g|, its counts by the scorer and its masks by the metric, against autograd and a sort."""
    expected = kept_by_sorting(by_autograd(replay), 0.5)
    counts = dict(GlobalThreshold(0.5, "magnitude_gradient", steps=1)(replay, all_layers(replay)))
    pruner, wrong = ByMetric(MagnitudeGradient(), "layer"), 0
    for index, block in enumerate(replay.blocks):
        seen = replay.run(index, pruner.needs)
        for layer in replay.anatomy.layers_of[block.name]:
            place = replay.place(index, layer)
            mask = pruner(layer.weight.data, seen[layer.name], ecoflap.Keep(int(counts[layer.name])), place).mask
            wrong += int((mask.numpy() != expected[layer.name]).sum())
        replay.advance(index)
    assert wrong <= 4  # two ways to add gradients may put a weight at the threshold on the other side


def test_each_tower_may_have_a_threshold_of_its_own(replay):
    first, second = (replay.anatomy.layers_of[replay.blocks[i].name] for i in (0, 1))
    second[0].weight.data.mul_(100)
    alone = dict(GlobalThreshold(0.5, each="tower")(replay, first))
    both = dict(GlobalThreshold(0.5, each="model")(replay, [*first, *second]))
    assert sum(alone.values()) == sum(layer.size for layer in first) // 2
    assert sum(both[layer.name] for layer in first) < sum(alone.values())


def test_an_expert_that_no_token_reached_keeps_nothing():
    """Its gradient is zero; what stands in for it where a layer is pruned by itself would be above every other's."""
    replay, left = unreached()
    found = dict(GlobalThreshold(0.8, "magnitude_gradient", steps=1)(replay, all_layers(replay)))
    assert not any(found[name] for name in left)
    assert sum(found.values()) == int(0.2 * sum(layer.size for layer in all_layers(replay)))


def test_the_scores_are_the_counts_that_the_allocator_gives():
    groups = [ecoflap.Group(name, 1000, score) for name, score in zip("abc", (1000.0, 17.0, 0.0), strict=True)]
    assert Ecoflap(max_sparsity=1.0)(groups, 1017) == [1000, 17, 0]


@dataclass
class Asks:
    """A recipe of which only the sparsities are looked at."""

    sparsity: float | None
    towers: dict[str, Any] = field(default_factory=dict)


def test_a_plan_hears_of_another_sparsity():
    assert list(GlobalThreshold(0.5).problems(context(recipe=Asks(0.5)))) == []
    (problem,) = GlobalThreshold(0.5).problems(context(recipe=Asks(0.6)))
    assert problem.startswith("its sparsity is 0.5, and the recipe's 0.6")
    towers = {"vision": "keep", "text": Asks(None), "language": Asks(0.5)}
    (problem,) = GlobalThreshold(0.5).problems(context(recipe=Asks(0.5, towers)))
    assert problem == "language has a sparsity of its own, and one threshold is for all: set each: tower"
    assert list(GlobalThreshold(0.5, each="tower").problems(context(recipe=Asks(0.5, towers)))) == []
    towers["language"] = Asks(0.7)
    (problem,) = GlobalThreshold(0.5, each="tower").problems(context(recipe=Asks(0.5, towers)))
    assert problem == "its sparsity is 0.5 for all towers, and that of language is 0.7: set it alike"


@pytest.mark.parametrize("wrong", [{"sparsity": 1.0}, {"sparsity": 0.5, "steps": 0}, {"sparsity": 0.5, "samples": 0}])
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(EcoflapError, match=f"{list(wrong)[-1]} is"):
        GlobalThreshold(**wrong)
