"""Holds the report of a finished run, with typed fields; reads and writes its file, ``report.json``."""

import json
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from ecoflap.core.budget.curves import Curve
from ecoflap.core.contracts.records import TokenChoice
from ecoflap.core.disk.paths import from_here
from ecoflap.core.errors import RunError
from ecoflap.core.recipe.differences import contradictions
from ecoflap.core.recipe.schema import rounds_in
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import Manifest
from ecoflap.core.record.recorded_recipe import RecordedRecipe
from ecoflap.core.sealing.sealed_lines import has_seal
from ecoflap.core.sealing.sealed_text import write_sealed_text
from ecoflap.core.sealing.validation import read_validated


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class RecordedMeasure(_Entry):
    """Holds what an evaluator found: a :class:`Measure` as JSON can hold it.

    :param standard_error: None where nothing is known of it, as of a mean over one thing.
    """

    value: float
    n: NonNegativeInt
    standard_error: float | None
    unit: str
    larger_is_better: bool


class Measures(_Entry):
    """Holds what evaluators found, by name, of the model before and after."""

    dense: Mapping[str, RecordedMeasure]
    pruned: Mapping[str, RecordedMeasure]


class RecordedGroup(_Entry):
    """Says how much of the budget a group has.

    :param size: How many weights it has.
    :param keep: How many of them stay.
    :param tower: Empty where it is made of several.
    :param score: None where nothing was scored; of a curve the rise at the level nearest the sparsity that was asked;
        of numbers of single weights what their sums come to.
    :param standard_error: Of the score, where the scorer gave the terms that it is a mean of.
    :param curve: How the loss rises with the group's sparsity, where the scorer gave curves.
    """

    size: PositiveInt
    keep: NonNegativeInt
    tower: str
    score: float | None
    standard_error: float | None
    curve: Curve | None = None

    @property
    def sparsity(self) -> float:
        """Give the share of its weights that went."""
        return 1 - self.keep / self.size


class RecordedBlock(_Entry):
    """Says how much of the budget a block has. Groups may be layers or towers; blocks are what runs can be compared by.

    :param size: How many prunable weights it has.
    :param keep: How many of them stay.
    """

    tower: str
    size: PositiveInt
    keep: NonNegativeInt

    @property
    def sparsity(self) -> float:
        """Give the share of its weights that went."""
        return 1 - self.keep / self.size


class RecordedStage(_Entry):
    """Says what a stage took over all the processes that worked on it.

    :param peak_memory: The most bytes that one of them held in it; the report's ``machine`` says of what.
    """

    stage: str
    seconds: float = Field(ge=0)
    peak_memory: NonNegativeInt

    @property
    def is_export(self) -> bool:
        """Say whether an export was written in it, as may be done days after all else."""
        return self.stage.startswith("export ")


class RecordedRefinement(_Entry):
    """Says what a refiner did to a block, or to the model; or a pruner that mends another one's choice, to a block.

    :param name: The block's name, or ``the model``.
    :param before: Its objective before, on batches for ``training`` and on those that were ``held_out``, which a pruner
        has none of.
    :param after: The same afterwards; empty where weights were NaN or infinite.
    :param is_kept: False where it was undone, or had nothing to do.
    :param number: Which of the refiners of that block, or of the model, it is, from 0. A pruner has none, nor have
        reports from before.
    """

    name: str
    refiner: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    is_kept: bool
    seconds: float = Field(ge=0)
    number: int | None = Field(default=None, ge=0)


class Report(_Entry):
    """Holds everything that is known of a finished run.

    :param finished: When, in UTC, by ISO 8601.
    :param parameters: How many the whole model has.
    :param prunable: How many weights the plan is about.
    :param kept: How many of those the masks keep.
    :param kept_zeros: How many of the kept weights happen to be zero.
    :param sparsity: The share of the prunable weights that went.
    :param towers: The same by tower.
    :param bytes: Of the weights in ``model/`` and, by name, in each export.
    :param exports: By name; without those that have no manifest.
    :param refined: What refiners did, block by block and to the model; empty where there were none.
    :param tokens: Which tokens counted in statistics of inputs, where several were tried; of rounds, in the last one.
    :param lines: Of each file that grows by the line the seal that its last line had, by the file's name.
    """

    version: Literal[1]
    finished: str
    recipe: RecordedRecipe
    parameters: NonNegativeInt
    prunable: PositiveInt
    kept: NonNegativeInt
    kept_zeros: NonNegativeInt
    sparsity: float = Field(ge=0, le=1)
    towers: Mapping[str, float]
    groups: Mapping[str, RecordedGroup]
    blocks: Mapping[str, RecordedBlock]
    measures: Measures
    bytes: Mapping[str, NonNegativeInt]
    stages: tuple[RecordedStage, ...]
    warnings: tuple[str, ...]
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    exports: Mapping[str, Manifest]
    lines: Mapping[str, str]
    refined: tuple[RecordedRefinement, ...] = ()
    tokens: TokenChoice | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> "Report":
        if not isclose(self.sparsity, 1 - self.kept / self.prunable, abs_tol=1e-9):
            raise ValueError(
                f"sparsity is {self.sparsity}, but kept is {self.kept} of {self.prunable} prunable weights"
            )
        for key, shares in (("groups", self.groups), ("blocks", self.blocks)):
            keep, size = sum(share.keep for share in shares.values()), sum(share.size for share in shares.values())
            if (keep, size) != (self.kept, self.prunable):
                raise ValueError(f"{key} keep {keep} of {size} weights, but kept is {self.kept} of {self.prunable}")
        return self

    @property
    def is_scored(self) -> bool:
        """Say whether the plan was made by scores, so that each group has one."""
        return any(group.score is not None for group in self.groups.values())

    @property
    def looked_at_scores(self) -> bool:
        """Say whether the run has scores, also where ``best_of`` took a plan of none. A recipe may have a scorer that
        nothing asked.
        """
        return any(stage.stage == "score" for stage in self.stages)

    @property
    def method(self) -> str:
        """Name the parts that the run used, such as ``zeroth_order → ecoflap → wanda``, and how many rounds it took."""
        parts = " → ".join([self.allocation, self.recipe.prune.use, *self._refiners])
        count = rounds_in(self.recipe.rounds)
        return f"{parts}, {count} rounds" if count > 1 else parts

    @property
    def _refiners(self) -> list[str]:
        """Name the refiners that ran, those that a tower has for itself before those of the recipe.

        What stands under ``refine`` is for towers that have none of their own: there may be no such tower.
        """
        ran = {one.refiner: one.number for one in self.refined}  # a pruner that mends has no number
        shared = [one.use for one in self.recipe.refine]
        own = [refiner for refiner, number in ran.items() if number is not None and refiner not in shared]
        return [*own, *(use for use in shared if use in ran)]

    @property
    def allocation(self) -> str:
        """Name the parts that divided the budget, such as ``zeroth_order → ecoflap``."""
        scorer = [self.recipe.score.use] if self.recipe.score is not None and self.looked_at_scores else []
        return " → ".join([*scorer, self.recipe.allocate.use])

    @property
    def scored_unit(self) -> str:
        """Name what shared one sparsity: ``block``, ``layer``…"""
        return self.recipe.score.granularity if self.recipe.score is not None else "group"

    def sparsities_by_tower(self) -> dict[str, list[float]]:
        """Return the sparsity of each block by tower, in the order in which the model runs them."""
        towers: dict[str, list[float]] = {}
        for block in self.blocks.values():
            towers.setdefault(block.tower, []).append(block.sparsity)
        return towers

    def scores_by_tower(self) -> dict[str, list[float]]:
        """Return the score of each group that has one by tower; groups of several towers stand together."""
        towers: dict[str, list[float]] = {}
        for group in self.groups.values():
            if group.score is not None:
                towers.setdefault(group.tower or "all towers", []).append(group.score)
        return towers

    @property
    def model_bytes(self) -> int:
        """Give the size of the weights in ``model/``."""
        return self.bytes["model"]

    def dense_bytes(self, name: str) -> int:
        """Give what an export's files would take dense, of which each may hold all weights, as its manifest says.

        :param name: The export's. Of one that does not say, and of ``model``, it is the size of the model.
        """
        dense = self.exports[name].bytes.dense if name in self.exports else None
        return self.model_bytes if dense is None else dense

    @property
    def export_bytes(self) -> dict[str, int]:
        """Give the size of the weights in each export, by its name."""
        return {name: size for name, size in self.bytes.items() if name != "model"}

    def dump(self) -> str:
        """Return the text of ``report.json``, but for its seal."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)


def write_report(folder: RunFolder, report: Report) -> None:
    """Write ``report.json``. A run that has one is finished."""
    write_sealed_text(folder.report, report.dump())


def read_report(path: Path | str) -> Report:
    """Read a ``report.json``.

    :raises RunError: Where it cannot be read or is not the report of a run that this version wrote: with the file and
        each place in it.
    """
    way_out = "Restore it; or delete it and run its recipe again, which writes the report anew."
    return read_validated(from_here(path), Report, RunError, way_out)


def check_lines(folder: RunFolder, report: Report) -> None:
    """Refuse a finished run in which lines are gone that were there when its report was written."""
    gone = [name for name, seal in report.lines.items() if not has_seal(folder.path / name, seal)]
    if gone:
        way_out = (
            f"Restore it; or delete {folder.report.name} and run the recipe again, which does anew what is gone, but "
            f"for trials of plans, of which the plan is there."
        )
        known = f"its last lines are gone, which {folder.report.name} knows"
        raise RunError(*(f"{folder.path / name}: {known}. {way_out}" for name in gone))


def check_recipe(folder: RunFolder, report: Report) -> None:
    """Refuse a finished run whose recipe is another run's: it differs in more than may change within a folder."""
    if not folder.recipe.is_file():
        return  # what is missing is named elsewhere
    unlike = contradictions(folder.read_recipe(), report.recipe.model_dump(mode="json"))
    if unlike:
        raise RunError(
            f"{folder.recipe} is not the recipe that {folder.report.name} tells of: {'; '.join(unlike)} (there vs in "
            f"the report). Restore the one that was changed; {folder.report.name} has its own under recipe"
        )
