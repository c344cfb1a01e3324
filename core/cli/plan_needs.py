"""Predict what a run needs, in memory and on disk, from the shapes of the model and from what its parts say."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.cli.plan_exports import exported_bytes, meanwhile_of, parameters_of
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import LossStatistic
from ecoflap.core.errors import dtype_name
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.arithmetic import is_slow
from ecoflap.core.recipe.schema import Calibration, Recipe
from ecoflap.core.record.memory import available_memory
from ecoflap.core.run.offload_problems import offload_problems
from ecoflap.core.run.prepared import Prepared
from ecoflap.core.run.spare_memory import is_in_memory, spare_for_scoring
from ecoflap.core.text.numbers import bytes_text

LIBRARIES = 500_000_000
"""About what Python, torch and transformers hold before any model, in bytes."""


def needs(prepared: Prepared) -> Iterator[tuple[str, str, str]]:
    """Yield what a run needs: of what, how much, and what that is made of."""
    width = _bytes_of_weight(prepared)
    yield _memory(prepared, width)
    yield from _spent_on_speed(prepared, width)
    yield from _slow_type(prepared)
    yield from _other_choices(prepared, width)
    if prepared.recipe.model.offload == "cpu" or prepared.recipe.model.device.startswith("cuda"):
        yield _device_memory(prepared, width)
    weights, masks = parameters_of(prepared) * width, prepared.size // 8
    remembered = sum(_remembered_each(prepared))
    exports = [(part.use, exported_bytes(part, prepared, width)) for part in prepared.recipe.export]
    kept = [("dense/", remembered), ("scores/", _weight_scores(prepared))]
    files = [("model/", weights), ("masks", masks), *((name, size) for name, size in kept if size), *exports]
    made_of = ", ".join(f"{name} {bytes_text(size)}" for name, size in files)
    yield "disk", bytes_text(sum(size for _, size in files)), made_of
    rounds, gradients, spilled = prepared.recipe.round_count, _gradients(prepared), 0
    if _keeps_on_disk(prepared):
        spilled = _recorded(prepared, width) + _inside(prepared, width)
        gradients = max(gradients, _by_scorer(prepared)[1])  # the scorer's are gone when pruners ask for theirs
    steps = _steps(prepared)
    meanwhile = rounds * (prepared.size * width + masks) + gradients + spilled + steps
    of_rounds = f" of {rounds} rounds" if rounds > 1 else ""
    beside = f"; gradients of the loss {bytes_text(gradients)}" if gradients else ""
    beside += f"; recorded activations {bytes_text(spilled)}" if spilled else ""
    beside += f"; the refiner's steps {bytes_text(steps)}" if steps else ""
    while_exporting = meanwhile_of(prepared, width, prepared.recipe.model.offload == "disk")
    if scratch := max((one.disk for one in while_exporting.values()), default=0):
        beside += f"; later, while a view is exported, {bytes_text(scratch)}"
    what = f"finished blocks{of_rounds}"
    if prepared.recipe.model.offload == "disk":  # finished blocks are model/ itself
        meanwhile, what = meanwhile - prepared.size * width, "masks of finished blocks"
    yield "disk meanwhile", bytes_text(max(meanwhile, scratch)), f"{what}, until model/ is complete{beside}"


def _steps(prepared: Prepared) -> int:
    """Give the bytes of a model's refiner's weights and two moments, and of what one before it left, in float32."""
    bytes_a_weight = (0, 12, 16)[min(len(prepared.model_refiners), 2)]
    return bytes_a_weight * prepared.size


def samples_of(keys: Calibration) -> int | None:
    """Give how many samples a dataset yields; None where that shows only when it is read."""
    samples: int | None = keys.data.options.samples
    return samples


def tokens_of_sample(prepared: Prepared, keys: Calibration) -> int:
    """Give how many tokens a sample has; 0 where that shows only when it is read."""
    with blaming(f"the adapter {type(prepared.adapter).__name__}, asked for its longest text,"):
        longest = prepared.adapter.max_length(prepared.model)
    with blaming(f"the dataset {keys.data.use}, asked for its tokens,"):
        tokens: int | None = keys.data.options.tokens_per_sample(longest)
    return tokens or 0


def _memory(prepared: Prepared, width: int) -> tuple[str, str, str]:
    """Add up the model and whatever is largest beside it: what pruning records, or weights that scoring widens."""
    held = _held(prepared, width, prepared.recipe.model.offload == "disk", _keeps_on_disk(prepared))
    unknown = prepared.recipe.calibration and not _recorded(prepared, width)
    made_of = (
        f"weights {bytes_text(held.weights)}, the largest block's statistics {bytes_text(held.statistics)}, recorded "
        f"activations {'not known before the data are read' if unknown else bytes_text(held.recorded)}, "
        f"masks {bytes_text(held.masks)}, scoring in float32 {bytes_text(held.widened)}, "
        f"refining {bytes_text(held.refining)}, libraries {bytes_text(LIBRARIES)}"
    )
    if held.scorers:
        made_of += f", what the scorer holds {bytes_text(held.scorers)}"
    if held.remembered:
        made_of += f", remembered of the dense model {bytes_text(held.remembered)}"
    for name, one in meanwhile_of(prepared, width, prepared.recipe.model.offload == "disk").items():
        made_of += f", exporting {name} {bytes_text(one.memory)}"
    return "peak memory", bytes_text(held.peak), made_of


def _spent_on_speed(prepared: Prepared, width: int) -> Iterator[tuple[str, str, str]]:
    """Say what scoring may hold beside what it needs."""
    if spare_for_scoring(prepared):
        at_once = prepared.scores_in_float32 and width < 4 and _is_widened_at_once(prepared)
        whole = "the model in float32 at once, which is counted above, and " if at_once else ""
        yield "for speed", "up to half of what is free", f"scoring keeps {whole}activations of a backward, if they fit"


def _slow_type(prepared: Prepared) -> Iterator[tuple[str, str, str]]:
    """Say of a model in a type that this CPU lacks what would be quicker."""
    dtype = _dtype(prepared)
    if is_in_memory(prepared) and is_slow(dtype):
        named, wide = dtype_name(dtype), bytes_text(4 * parameters_of(prepared))
        instead = f"model.dtype: float32 (weights {wide}) is quicker, and prunes nearly the same"
        yield "slow", f"products in {named}", f"torch does them several times as slowly on this CPU: {instead}"


def _is_widened_at_once(prepared: Prepared) -> bool:
    return 4 * parameters_of(prepared) <= spare_for_scoring(prepared)


def _other_choices(prepared: Prepared, width: int) -> Iterator[tuple[str, str, str]]:
    """Say what memory the run would need with the model or the record kept elsewhere, and what there is."""
    own = prepared.recipe.model.offload == "disk", _keeps_on_disk(prepared)
    on_disk = replace(prepared, recipe=_offloaded(prepared.recipe))
    may_offload = own[0] or not any(offload_problems(on_disk))
    others = {
        " and ".join(name for name, chosen in zip(_PLACES, choice, strict=True) if chosen) or "all in memory": choice
        for choice in product((False, True), (False, True))
        if choice != own and (may_offload or not choice[0]) and (prepared.recipe.calibration or not choice[1])
    }
    there = available_memory()
    said = [_said(name, _held(prepared, width, *choice).peak, there) for name, choice in others.items()]
    if there is not None and _held(prepared, width, *own).peak > there:
        said = ["the recipe as it is does not fit", *said]
    if not said:
        return
    yield "memory free here", "not known" if there is None else bytes_text(there), "; ".join(said)


def _said(choice: str, size: int, there: int | None) -> str:
    fits = "" if there is None or size <= there else ", which does not fit"
    return f"{choice} takes {bytes_text(size)}{fits}"


_PLACES = ("model.offload: disk", "calibration.keep: disk")


def _offloaded(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"offload": "disk"})})


def _keeps_on_disk(prepared: Prepared) -> bool:
    keys = prepared.recipe.calibration
    return keys is not None and keys.keep == "disk"


@dataclass(frozen=True)
class _Held:
    """What a run holds in memory, in bytes.

    :param masks: Those of all layers, packed, and of the round before, within which these are.
    :param scorers: What the scorer holds for itself beside what its replay widens.
    :param remembered: What one evaluator remembers of the dense model: before anything is scored or recorded.
    :param exporting: What the exporter takes that takes most, when all else but the masks is done.
    """

    weights: int
    statistics: int
    recorded: int
    masks: int
    widened: int
    scorers: int
    refining: int
    remembered: int
    exporting: int

    @property
    def peak(self) -> int:
        """Give what is held at the most, with the libraries."""
        pruning = self.statistics + self.recorded + self.masks + self.refining
        largest = max(pruning, self.widened + self.scorers, self.remembered, self.masks + self.exporting)
        return LIBRARIES + self.weights + largest


def _held(prepared: Prepared, width: int, offloaded: bool, spilled: bool) -> _Held:
    """Add up what is held.

    :param offloaded: Whether the weights stay in files but for the block that is being pruned.
    :param spilled: Whether what blocks gave is kept on the disk.
    """
    block = _largest_block(prepared.anatomy)
    outside = parameters_of(prepared) - sum(layer.size for _, layer in prepared.anatomy.layers())
    recorded = 0 if spilled else _recorded(prepared, width)
    widened = 4 * (outside + block) if width < 4 and prepared.scores_in_float32 else 0
    if widened and not offloaded and _is_widened_at_once(prepared):
        widened = 4 * parameters_of(prepared)
    refining = _refining(prepared) + (recorded if prepared.looks_at_dense else 0)
    refining += 0 if spilled else _inside(prepared, width)
    if refining and prepared.recipe.round_count > 1:
        refining += prepared.size * width  # the dense weights, for what the dense model gave
    weights = (block if offloaded else parameters_of(prepared)) * width
    remembered = max(_remembered_each(prepared), default=0)
    masks = prepared.size // 8 * min(prepared.recipe.round_count, 2)
    exporting = max((one.memory for one in meanwhile_of(prepared, width, offloaded).values()), default=0)
    by_scorer, recorded_by_scorer = _by_scorer(prepared)
    scorers = by_scorer + (0 if spilled else recorded_by_scorer)
    return _Held(weights, _statistics(prepared), recorded, masks, widened, scorers, refining, remembered, exporting)


def _by_scorer(prepared: Prepared) -> tuple[int, int]:
    """Give the bytes of what the scorer holds for itself, and of what it has kept where the record is."""
    if not prepared.looks_at_scores or prepared.recipe.score is None:
        return 0, 0
    scorer = prepared.recipe.score.scorer
    with blaming(f"the scorer {scorer.use}, asked how many numbers it holds and records,"):
        held: int = scorer.options.held_numbers(prepared.anatomy)
        recorded: int = scorer.options.recorded_numbers(prepared.anatomy)
    return 4 * held, 4 * recorded


def _weight_scores(prepared: Prepared) -> int:
    """Give the bytes of the scorer's numbers, where it gives one for each weight."""
    score = prepared.recipe.score
    if score is None or not prepared.looks_at_scores or score.scorer.options.gives != "weights":
        return 0
    return 4 * sum(pool.size for pool in prepared.pools if not isinstance(pool.sparsity, Pattern))


def _remembered_each(prepared: Prepared) -> list[int]:
    """Give the bytes that each evaluator remembers of the dense model, as far as that is known before data are read."""
    found = []
    for part in prepared.recipe.evaluate:
        with blaming(f"the evaluator {part.use}, asked how much it remembers,"):
            found.append(part.options.remembered_bytes(prepared.context))
    return [size for size in found if size is not None]


def _refining(prepared: Prepared) -> int:
    """Give the bytes of what a refiner holds: four numbers a weight by Adam, of a block or of the whole model.

    The activations of the batch that is trained on come on top: they depend on how the model's library computes them.
    """
    if prepared.model_refiners:
        return 16 * prepared.size + 4 * (parameters_of(prepared) - prepared.size)
    return 16 * _largest_block(prepared.anatomy) if any(prepared.block_refiners.values()) else 0


def _device_memory(prepared: Prepared, width: int) -> tuple[str, str, str]:
    """Add up a block, its statistics, and one batch's input and output.

    What attention needs in between comes on top: it depends on how the model's library computes it.
    """
    block, statistics = _largest_block(prepared.anatomy), _statistics(prepared)
    block *= 4 if prepared.scores_in_float32 else width
    keys = prepared.recipe.calibration
    batches = -(-(samples_of(keys) or 1) // keys.batch_size) if keys else 1
    activations = 2 * _recorded(prepared, 4) // max(1, batches)
    made_of = f"the largest block {bytes_text(block)}, its statistics {bytes_text(statistics)}"
    size = bytes_text(block + statistics + activations)
    return "device memory", size, f"{made_of}, a batch's input and output {bytes_text(activations)}"


def _bytes_of_weight(prepared: Prepared) -> int:
    return int(_dtype(prepared).itemsize)


def _dtype(prepared: Prepared) -> torch.dtype:
    """Give the type that the recipe asks for, or that the configuration names."""
    asked = prepared.recipe.model.dtype
    stored = prepared.source.config.get("dtype") or prepared.source.config.get("torch_dtype") or "float32"
    dtype: torch.dtype = getattr(torch, str(stored if asked == "auto" else asked).removeprefix("torch."), torch.float32)
    return dtype


def _largest_block(anatomy: Anatomy) -> int:
    return max(sum(layer.size for layer in layers) for layers in anatomy.layers_of.values())


def _statistics(prepared: Prepared) -> int:
    """Give the bytes of the statistics of the block that needs most.

    It is an upper bound: layers that share an input share its statistics, and are counted one by one.
    """
    pruners = prepared.pruners
    return max(
        sum(
            _bytes_of_statistic(statistic, layer.shape[1])
            for layer in prepared.anatomy.layers_of[block.name]
            for statistic in pruners[block.tower].options.needs
        )
        for block in prepared.anatomy.blocks
    )


def _gradients(prepared: Prepared) -> int:
    """Give the bytes of what pruners ask of the loss' gradient: a number for each weight, in a file."""
    return sum(
        4 * layer.size
        for block, layer in prepared.anatomy.layers()
        for statistic in prepared.pruners[block.tower].options.needs
        if issubclass(statistic, LossStatistic)
    )


def _bytes_of_statistic(statistic: Any, in_features: int) -> int:
    with blaming(f"the statistic {statistic.__name__}, made without memory,"), torch.device("meta"):
        values = vars(statistic(in_features)).values()
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def _recorded(prepared: Prepared, width: int) -> int:
    """Give the bytes of what replay records: of each tower one output a sample, which the next block reads."""
    towers = prepared.anatomy.towers
    hidden = max(prepared.anatomy.layers_of[tower.blocks[0].name][0].shape[1] for tower in towers)
    return _positions(prepared) * hidden * width * len(towers)


def _positions(prepared: Prepared) -> int:
    """Give how many tokens the calibration data have in all; 0 where that shows only when they are read."""
    keys = prepared.recipe.calibration
    return 0 if keys is None else (samples_of(keys) or 0) * tokens_of_sample(prepared, keys)


def _inside(prepared: Prepared, width: int) -> int:
    """Give the bytes of what is kept inside a block for its refiners: what each sub-block gave, and one is given now.

    A sub-block gives as many numbers a token as its last layer, and is given as many, in float32, as its first takes.
    """
    asked = [found for of_blocks in prepared.subblocks_asked.values() for found in of_blocks.values() if found]
    given = [width * sum(one.layers[-1].shape[0] for one in found) for found in asked]
    taken = [4 * max(one.layers[0].shape[1] for one in found) for found in asked]
    return _positions(prepared) * max(map(sum, zip(given, taken, strict=True)), default=0)
