"""Pruners that look at the dense weights have them in every round, wherever the model is."""

from typing import Any, ClassVar

import pytest
import torch
from offloaded import assert_alike, in_memory, recipe_of
from safetensors.torch import load_file

import ecoflap
from ecoflap.core.errors import ModelError


@pytest.fixture
def recipe(plain: Any) -> Any:
    return plain(rounds=3, sparsity=0.6, score=None, allocate="uniform", export=None)


class LargestOfDense:
    """Keeps the largest dense weights of what is left, with twice their values, which is no weight of the round before.

    In each round it notes what it is given.
    """

    dense_weights = True
    seen: ClassVar[list[tuple[str, torch.Tensor, torch.Tensor]]] = []

    def __call__(self, weight, seen, budget, layer):
        self.seen.append((layer.name, weight.clone(), seen.dense_weight.clone()))
        mask = ecoflap.select(seen.dense_weight.abs().float() * (weight != 0), budget, "layer")
        return ecoflap.Pruned(mask, 2 * seen.dense_weight * mask)


INSIDE = {"use": "dsnot", "max_cycles": 1, "inner": LargestOfDense}


@pytest.mark.parametrize("prune", [LargestOfDense, INSIDE], ids=["alone", "inside"])
def test_a_pruner_may_look_at_the_dense_weights_in_every_round(recipe, pico, tmp_path, monkeypatch, prune):
    monkeypatch.setattr(LargestOfDense, "seen", [])
    recipe = {**recipe, "prune": prune}
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    dense = load_file(pico / "model" / "model.safetensors")
    assert len(LargestOfDense.seen) == 3 * len(run.plan.layers)
    assert all(torch.equal(found, dense[name]) for name, _, found in LargestOfDense.seen)
    changed = [name for name, weight, _ in LargestOfDense.seen if not torch.equal(weight, dense[name])]
    assert len(changed) == 2 * len(run.plan.layers)  # in the rounds behind the first


def test_the_largest_dense_weights_in_rounds_are_those_at_once(recipe, pico, tmp_path):
    run = ecoflap.run({**recipe, "prune": LargestOfDense}, folder=tmp_path / "run")
    dense, masks = load_file(pico / "model" / "model.safetensors"), ecoflap.load_masks(run.folder)
    for name, mask in masks.items():
        size = dense[name].abs()
        assert mask.count_nonzero() == run.plan.layers[name].keep
        assert size[mask].min() >= size[~mask].max()  # in bfloat16 some are as large as others
        assert torch.equal(run.model.state_dict()[name], 2 * dense[name] * mask)


def test_candidates_of_later_rounds_are_tried_with_the_dense_weights(recipe, pico, tmp_path, monkeypatch):
    monkeypatch.setattr(LargestOfDense, "seen", [])
    tried = {"use": "best_of", "of": ["uniform", {"use": "atp", "beta": 0.1}]}
    ecoflap.run({**recipe, "rounds": 2, "allocate": tried, "prune": LargestOfDense}, folder=tmp_path / "a")
    dense = load_file(pico / "model" / "model.safetensors")
    assert len(LargestOfDense.seen) >= 4 * 3 * 7
    assert all(torch.equal(found, dense[name]) for name, _, found in LargestOfDense.seen)


class WritesIntoDense:
    """Halves what it is to look at, behind torch's back."""

    dense_weights = True

    def __call__(self, weight, seen, budget, layer):
        if seen.dense_weight is not weight:
            seen.dense_weight.data.mul_(0.5)
        mask = ecoflap.select(weight.abs(), budget, "layer")
        return ecoflap.Pruned(mask, weight * mask)


def test_a_pruner_that_writes_into_the_dense_weights_is_refused(recipe, tmp_path):
    with pytest.raises(ModelError, match=r"q_proj\.weight: the pruner .*WritesIntoDense wrote into the dense weights"):
        ecoflap.run({**recipe, "prune": WritesIntoDense}, folder=tmp_path / "run")


class HalfOfDense:
    """Keeps the largest of what is left, with half of its dense values."""

    dense_weights = True

    def __call__(self, weight: Any, seen: Any, budget: Any, layer: Any) -> Any:
        mask = ecoflap.select(weight.abs(), budget, "layer")
        return ecoflap.Pruned(mask, seen.dense_weight / 2 * mask)


def test_pruners_see_the_weights_that_the_checkpoint_has(tmp_path):
    pytest.importorskip("accelerate", reason="a model stays in its files by it")
    pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
    recipe = recipe_of("llama", tmp_path, rounds=3, sparsity=0.6, prune=HalfOfDense)
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
