"""Predict the memory that a run takes: the model, and whatever is largest beside it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from ecoflap.core.needs.exports import meanwhile_of
from ecoflap.core.needs.sizes import (
    batches_of,
    bytes_inside_blocks,
    bytes_of_record,
    bytes_of_refining,
    bytes_of_refining_a_block,
    bytes_of_scorer,
    bytes_of_solving,
    bytes_of_statistics,
    bytes_of_weight,
    bytes_remembered,
    largest_block,
    parameters_of,
)
from ecoflap.core.preparing.offload_problems import offload_problems
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.run.spare_memory import spare_for_scoring, spare_memory

LIBRARIES = 500_000_000
"""About what Python, torch and transformers hold before any model, in bytes."""


@dataclass(frozen=True)
class Places:
    """Says where two things are that may be in memory.

    :param offloaded: Whether the weights stay in files but for the block that is being pruned.
    :param spilled: Whether what blocks gave is kept on the disk.
    """

    offloaded: bool
    spilled: bool

    @classmethod
    def asked(cls, recipe: Recipe) -> "Places":
        """Give those that a recipe asks for."""
        keys = recipe.calibration
        return cls(recipe.model.offload == "disk", keys is not None and keys.keep == "disk")

    def __str__(self) -> str:
        keys = (("model.offload: disk", self.offloaded), ("calibration.keep: disk", self.spilled))
        return " and ".join(key for key, is_chosen in keys if is_chosen) or "all in memory"


class Wide(NamedTuple):
    """Is what each stage holds in float32 of a model that is narrower, because it computes in that, in bytes."""

    checking: int
    scoring: int
    pruning: int
    evaluating: int


@dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """Is what a run holds in memory, in bytes.

    :param statistics: Those of the block that needs most, which are counted while a span's are added, too.
    :param solving: What a pruner holds of a layer, when those of spans are together.
    :param masks: Those of all layers, packed, and of the round before, within which these are.
    :param wide: What is held in float32 although the model is narrower.
    :param scorer: What the scorer holds for itself beside what its replay widens.
    :param remembered: What one evaluator remembers of the dense model: before anything is scored or recorded.
    :param before: The weights as they were before anything was pruned, where they are in memory and looked at later.
    :param tried: The weights that are put back after a candidate was tried, where they are in memory.
    :param refining_tried: What refiners hold while a candidate is tried; 0 where none are.
    :param exporting: What each exporter takes that says so, by its name, when all else but the masks is done.
    """

    weights: int
    statistics: int
    solving: int
    recorded: int
    masks: int
    wide: Wide
    scorer: int
    refining: int
    remembered: int
    before: int
    tried: int
    refining_tried: int
    exporting: dict[str, int]

    @property
    def peak(self) -> int:
        """Give what is held at the most, with the libraries.

        What a forward holds of a batch comes on top: it depends on how the model's library computes it.
        """
        choosing = max(self.statistics, self.solving, self.refining_tried) + self.tried
        pruning = self.statistics + max(choosing, self.refining) + self.recorded + self.masks
        working = self.before + max(self.wide.pruning + pruning, self.wide.scoring + self.scorer)
        evaluating = self.wide.evaluating + self.remembered
        exporting = self.masks + max(self.exporting.values(), default=0)
        return LIBRARIES + self.weights + max(self.wide.checking, working, evaluating, exporting)


@dataclass(frozen=True, kw_only=True)
class DeviceNeeds:
    """Is what a run holds on a device that has a block at a time, in bytes.

    What attention needs in between comes on top: it depends on how the model's library computes it.

    :param activations: A batch's input and output.
    """

    block: int
    statistics: int
    activations: int

    @property
    def peak(self) -> int:
        """Give what is held at the most."""
        return self.block + self.statistics + self.activations


def memory_needs(prepared: Prepared, places: Places) -> MemoryNeeds:
    """Add up what a run holds with the model and the record in these places."""
    width = bytes_of_weight(prepared)
    block = largest_block(prepared.anatomy)
    recorded = 0 if places.spilled else bytes_of_record(prepared)
    wide = _in_float32(prepared, places)
    recorded_for_refiners = recorded * len(prepared.targets_asked)
    recorded_for_refiners += 0 if places.spilled else bytes_inside_blocks(prepared)
    allocator = prepared.recipe.allocate.options
    whole = 0 if places.offloaded else prepared.size * width
    held_by_scorer, recorded_by_scorer = bytes_of_scorer(prepared)
    exporting = meanwhile_of(prepared, places.offloaded)
    return MemoryNeeds(
        weights=(block if places.offloaded else parameters_of(prepared)) * width,
        statistics=bytes_of_statistics(prepared),
        solving=bytes_of_solving(prepared),
        recorded=recorded,
        masks=prepared.size // 8 * min(prepared.recipe.round_count, 2),
        wide=wide,
        scorer=held_by_scorer + (0 if places.spilled else recorded_by_scorer),
        refining=bytes_of_refining(prepared, in_files=places.offloaded) + recorded_for_refiners,
        remembered=max(bytes_remembered(prepared), default=0),
        before=whole if prepared.holds_dense_weights else 0,
        tried=whole if allocator.candidates else 0,
        refining_tried=bytes_of_refining_a_block(prepared) + recorded_for_refiners if allocator.refine else 0,
        exporting={name: one.memory for name, one in exporting.items()},
    )


def _in_float32(prepared: Prepared, places: Places) -> Wide:
    """Give what stages widen: what is outside of blocks and a block at a time, or all of it where memory takes that."""
    outside = parameters_of(prepared) - sum(layer.size for _, layer in prepared.anatomy.layers())
    a_block, whole = 4 * (outside + largest_block(prepared.anatomy)), 4 * parameters_of(prepared)
    is_narrow = bytes_of_weight(prepared) < 4
    checking = a_block if is_narrow and prepared.recipe.calibration is not None else 0
    scores = is_narrow and prepared.looks_at_scores
    at_once = not places.offloaded and is_widened_at_once(prepared)
    scoring = (whole if at_once else a_block) if scores and (prepared.scores_in_float32 or prepared.held_in) else 0
    if prepared.held_in is None:
        return Wide(checking, scoring, pruning=0, evaluating=0)
    is_whole = not places.offloaded and whole <= spare_memory(prepared)
    return Wide(checking, scoring, pruning=a_block, evaluating=whole if is_whole else a_block)


def other_places(prepared: Prepared) -> Iterator[Places]:
    """Yield where else the model and the record may be in this recipe's runs."""
    recipe = prepared.recipe
    asked = Places.asked(recipe)
    offloading = recipe.model_copy(update={"model": recipe.model.model_copy(update={"offload": "disk"})})
    may_offload = asked.offloaded or not any(offload_problems(replace(prepared, recipe=offloading)))
    for choice in (Places(*chosen) for chosen in product((False, True), (False, True))):
        if choice != asked and (may_offload or not choice.offloaded) and (recipe.calibration or not choice.spilled):
            yield choice


def device_needs(prepared: Prepared) -> DeviceNeeds | None:
    """Add up what is on the device, where it has a block at a time; None where the model is in main memory."""
    recipe = prepared.recipe
    if recipe.model.offload != "cpu" and not recipe.model.device.startswith("cuda"):
        return None
    keys = recipe.calibration
    batches = batches_of(keys) if keys else 1
    width = 4 if prepared.scores_in_float32 or prepared.held_in else bytes_of_weight(prepared)
    return DeviceNeeds(
        block=largest_block(prepared.anatomy) * width,
        statistics=bytes_of_statistics(prepared),
        activations=2 * bytes_of_record(prepared, 4) // max(1, batches),
    )


def is_widened_at_once(prepared: Prepared) -> bool:
    """Say whether scoring holds all of the model in float32, since there is memory for it."""
    return 4 * parameters_of(prepared) <= spare_for_scoring(prepared)
