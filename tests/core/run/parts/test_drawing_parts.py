"""Parts that draw from the global generators of torch, numpy and Python: the recipe's seed says what they draw."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import ecoflap
from ecoflap import Sample
from ecoflap.core.budget.water_fill import fill_groups
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import WayOut


def luck():
    """A number from each of the three generators, added up."""
    return float(torch.rand(())) + float(np.random.rand()) + random.random()


class Killed(WayOut):
    """Stands for a signal that ends a process."""


class LuckyScores:
    """Scores of nothing but luck. It is killed at its answer of this number."""

    data: ClassVar[bool] = False
    aggregate: ClassVar[str] = "sum"
    dies_at: ClassVar[int | None] = None

    def __call__(self, replay, layers):
        for number, layer in enumerate(layers):
            if number == self.dies_at:
                raise Killed
            yield layer.name, luck()


class LuckyScoresTogether(LuckyScores):
    """The same, which is given all layers again where a run goes on."""

    together: ClassVar[bool] = True


class LuckyList(LuckyScores):
    """The same, all at once."""

    def __call__(self, replay, layers):
        return [(layer.name, luck()) for layer in layers]


class LuckyBudgets:
    """Budgets of nothing but luck."""

    takes: ClassVar[None] = None

    def __call__(self, groups, keep):
        return fill_groups(groups, [0] * len(groups), [group.size * (1 + luck()) for group in groups], keep)


@dataclass(frozen=True)
class LuckyTexts:
    """Texts of nothing but luck."""

    samples: int = 2

    def __call__(self, adapter, model, note):
        for _ in range(self.samples):
            yield Sample(tokens=torch.randint(3, 60, (8,)))


class Lucky:
    """A measure of nothing but luck."""

    def __call__(self, model, adapter, note):
        return {"luck": Measure(luck(), 1, 0.0)}


@pytest.fixture
def lucky(plain, tmp_path):
    """``lucky(name, seed)``: a run in this folder, where the global generators are somewhere else each time."""
    numbers = iter(range(100))

    def lucky(name, seed=0, **keys):
        start = next(numbers)
        torch.manual_seed(start), np.random.seed(start), random.seed(start)
        # What checks types in tests draws from Python's.
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        recipe = plain(**{"export": None, "evaluate": None, "score": None, "allocate": "uniform", "seed": seed, **keys})
        done = ecoflap.run(recipe, folder=tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        return done

    return lucky


def scores_of(run):
    return (run.folder / "scores.jsonl").read_text()


@pytest.mark.parametrize("scorer", [LuckyScores, LuckyScoresTogether, LuckyList])
def test_what_a_scorer_draws_follows_from_the_seed(lucky, scorer):
    keys = {"score": scorer, "allocate": None, "calibration": None, "prune": "magnitude"}
    first, again, other = lucky("first", **keys), lucky("again", **keys), lucky("other", seed=1, **keys)
    assert scores_of(first) == scores_of(again)
    assert first.plan.layers == again.plan.layers
    assert scores_of(first) != scores_of(other)
    values = [line.split('"score": ')[1].split(",")[0] for line in scores_of(first).splitlines()[1:]]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("scorer", [LuckyScores, LuckyScoresTogether])
@pytest.mark.parametrize("dies_at", [0, 1, 5])
def test_a_scorer_that_was_cut_off_draws_what_an_unbroken_one_does(lucky, monkeypatch, scorer, dies_at):
    keys = {"score": scorer, "allocate": None, "calibration": None, "prune": "magnitude"}
    unbroken = lucky("unbroken", **keys)
    with monkeypatch.context() as patch:
        patch.setattr(LuckyScores, "dies_at", dies_at)
        with pytest.raises(Killed):
            lucky("cut", **keys)
    assert scores_of(lucky("cut", **keys)) == scores_of(unbroken)


def test_what_an_allocator_draws_follows_from_the_seed(lucky):
    keys = {"allocate": LuckyBudgets, "calibration": None, "prune": "magnitude"}
    first, again, other = lucky("first", **keys), lucky("again", **keys), lucky("other", seed=1, **keys)
    assert first.plan.layers == again.plan.layers
    assert first.plan.layers != other.plan.layers


def test_what_a_dataset_draws_follows_from_the_seed(lucky):
    keys = {"calibration": {"use": LuckyTexts, "samples": 3, "batch_size": 2}}
    first, again, other = lucky("first", **keys), lucky("again", **keys), lucky("other", seed=1, **keys)
    masks = [(run.folder / "masks.safetensors").read_bytes() for run in (first, again, other)]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]


def test_an_evaluator_draws_the_same_of_the_dense_and_the_pruned_model_in_every_run(lucky):
    keys = {"evaluate": Lucky, "calibration": None, "prune": "magnitude"}
    measures = [lucky(name, seed, **keys).report.measures for name, seed in (("first", 0), ("other", 1))]
    assert len({one["luck"].value for found in measures for one in (found.dense, found.pruned)}) == 1
