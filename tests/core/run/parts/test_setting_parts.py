"""Parts that set what holds for all of torch: whatever comes behind them finds it as the user has it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import ecoflap
from ecoflap import Pruned, Sample, select
from ecoflap.core.budget.water_fill import fill_groups
from ecoflap.core.contracts.records import Measure

SEEN: list[tuple[str, Any]] = []
"""What each part has found set, with what the part is."""


def settings() -> tuple[torch.dtype, int]:
    return torch.get_default_dtype(), torch.get_num_threads()


def meddle(what: str) -> None:
    """Note what is set, and set something else."""
    SEEN.append((what, settings()))
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)


@dataclass(frozen=True)
class Texts:
    samples: int = 2

    def __call__(self, adapter, model, note):
        meddle("dataset")
        for number in range(self.samples):
            yield Sample(tokens=torch.arange(3 + number, 11 + number))


class Scores:
    aggregate: ClassVar[str] = "sum"

    def __call__(self, replay, layers):
        meddle("scorer")
        return [(layer.name, 1.0) for layer in layers]


class Budgets:
    takes: ClassVar[str] = "number"

    def __call__(self, groups, keep):
        meddle("allocator")
        return fill_groups(groups, [0] * len(groups), [group.size for group in groups], keep)


class Prunes:
    def __call__(self, weight, seen, budget, layer):
        meddle("pruner")
        mask = select(weight.detach().abs().float(), budget, "layer")
        return Pruned(mask, weight * mask)


class Counted:
    """A statistic of a layer's inputs."""

    def __init__(self, in_features):
        self.tokens = 0

    def add(self, inputs):
        meddle("statistic")
        self.tokens += inputs[..., 0].numel()

    def merge(self, other):
        self.tokens += other.tokens

    def to(self, device):
        return self


class PrunesByIt(Prunes):
    needs: ClassVar[tuple[type, ...]] = (Counted,)


class Refines:
    def __call__(self, view):
        meddle("refiner")
        with torch.no_grad():
            for parameter in view.parameters:
                parameter.mul_(1.0001)


class Measures:
    def __call__(self, model, adapter, note):
        meddle("evaluator")
        return {"one": Measure(1.0, 1, 0.0)}


@pytest.mark.parametrize("sequential", [False, True])
def test_every_part_finds_what_the_user_has_set(plain, tmp_path, sequential):
    """Sums by other threads have other last bits, so that a run that was cut off would end with other masks."""
    before, recipe = settings(), plain(
        calibration={"use": Texts}, score={"use": Scores}, allocate={"use": Budgets}, prune={"use": Prunes},
        refine={"use": Refines}, evaluate={"use": Measures}, export=None, sequential=sequential,
    )  # fmt: skip
    SEEN.clear()
    ecoflap.run(recipe, folder=tmp_path / "run")
    assert settings() == before
    assert {what for what, _ in SEEN} == {"dataset", "scorer", "allocator", "pruner", "refiner", "evaluator"}
    assert [what for what, found in SEEN if found != before] == []


def test_what_a_statistic_sets_holds_for_no_other_block(plain, tmp_path):
    """A run goes on behind a whole block: what counts is that each begins as the first does."""
    before = settings()
    SEEN.clear()
    none = {"score": None, "allocate": "uniform", "evaluate": None, "export": None}
    done = ecoflap.run(plain(prune={"use": PrunesByIt}, **none), folder=tmp_path / "run")
    assert settings() == before
    found = [found for what, found in SEEN if what == "statistic"]
    assert found.count(before) == done.model.config.num_hidden_layers < len(found)
