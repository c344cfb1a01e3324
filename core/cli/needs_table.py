"""Say what a run needs, in memory and on disk."""

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ecoflap.core.disk.write_errors import free_for
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.machine.arithmetic import is_slow
from ecoflap.core.machine.memory import available_memory
from ecoflap.core.needs.disk import DiskNeeds, disk_needs
from ecoflap.core.needs.memory import (
    LIBRARIES,
    MemoryNeeds,
    Places,
    device_needs,
    is_widened_at_once,
    memory_needs,
    other_places,
)
from ecoflap.core.needs.sizes import bytes_of_record, bytes_of_weight
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.run.spare_memory import spare_for_pruning, spare_for_scoring
from ecoflap.core.text.numbers import bytes_text

_NOT_KNOWN = "not known before the data are read"
_MINUTES = f"{KeptSteps.EVERY / 60:g} minutes"
"""How long a refiner of the whole model trains before its steps are kept."""

Row: TypeAlias = tuple[str, str, str]
"""Of what, how much, and what that is made of."""


def needs(prepared: Prepared) -> Iterator[Row]:
    """Yield a row for each thing that a run needs."""
    places, others = Places.asked(prepared.recipe), list(other_places(prepared))
    held, written = memory_needs(prepared, places), disk_needs(prepared, places)
    yield _memory(prepared, held)
    yield from _left_out(prepared.recipe)
    yield from _spent_on_speed(prepared)
    yield from _arithmetic(prepared)
    in_memory = {other: _Taken(memory_needs(prepared, other).peak) for other in others}
    unknown = _is_unknown(prepared)  # of what is recorded, wherever that is
    least = [other for other in others if unknown and not other.spilled]
    yield from _there("memory free here", available_memory(), _Taken(held.peak), in_memory, least)
    yield from _device(prepared)
    yield from _disk(prepared, places, written)
    on_disk = {other: _on_disk(disk_needs(prepared, other)) for other in others}
    least = [other for other in others if unknown and other.spilled]
    yield from _there("disk free here", _free_disk(), _on_disk(written), on_disk, least)


class _Taken(NamedTuple):
    """Holds the bytes that a run takes, and how many more where a refiner of the whole model is long at it."""

    peak: int
    longer: int = 0

    def fits(self, there: int | None) -> str:
        """Say that it does not fit, or in which case; nothing where it does, or where nobody knows what there is."""
        if there is None or self.peak + self.longer <= there:
            return ""
        return "does not fit" if self.peak > there else f"does not fit if refining takes over {_MINUTES}"


def _on_disk(written: DiskNeeds) -> _Taken:
    return _Taken(written.peak, written.longer)


def _is_unknown(prepared: Prepared) -> bool:
    """Say whether how much is recorded shows only when the data are read, as of images."""
    return prepared.recipe.calibration is not None and not bytes_of_record(prepared)


def _memory(prepared: Prepared, held: MemoryNeeds) -> Row:
    is_least = _is_unknown(prepared) and not Places.asked(prepared.recipe).spilled
    solves = held.solving > held.statistics
    then = "what a layer is solved with" if solves else "those of a span of batches"
    made_of = (
        f"weights {bytes_text(held.weights)}, the largest block's statistics {bytes_text(held.statistics)}, "
        f"{then} {bytes_text(max(held.solving, held.statistics))}, recorded "
        f"activations {_NOT_KNOWN if is_least else bytes_text(held.recorded)}, "
        f"masks {bytes_text(held.masks)}, checking in float32 {bytes_text(held.wide.checking)}, "
        f"scoring in float32 {bytes_text(held.wide.scoring)}, refining {bytes_text(held.refining)}, "
        f"libraries {bytes_text(LIBRARIES)}"
    )
    if held.wide.pruning:
        made_of += f", pruning in float32 {bytes_text(held.wide.pruning)}"
        made_of += f", evaluating in float32 {bytes_text(held.wide.evaluating)}"
    if held.scorer:
        made_of += f", what the scorer holds {bytes_text(held.scorer)}"
    if held.before:
        made_of += f", the dense weights for who looks at them later {bytes_text(held.before)}"
    if held.tried:
        made_of += f", those that a trial puts back {bytes_text(held.tried)}"
    if held.remembered:
        made_of += f", remembered of the dense model at most {bytes_text(held.remembered)}"
    for name, size in held.exporting.items():
        made_of += f", exporting {name} {bytes_text(size)}"
    return "peak memory", f"{'at least ' * is_least}{bytes_text(held.peak)}", made_of


def _left_out(recipe: Recipe) -> Iterator[Row]:
    """Say what the peak leaves out, and the batches that it grows with: how a library computes is not known."""
    batches = [f"{use.where} {use.batch_size}" for use in recipe.calibration_uses()]
    batches += [f"{part.use} {part.parameters.get('batch_size', '')}".strip() for part in recipe.evaluate]
    if batches:
        made_of = f"what a forward of a batch holds, which grows with batch_size ({', '.join(dict.fromkeys(batches))})"
        yield "beside the peak", "not predicted", f"{made_of}: lower that where it does not fit"


def _spent_on_speed(prepared: Prepared) -> Iterator[Row]:
    """Say what scoring and pruning may hold beside what they need."""
    most = "up to half of what is free"
    if spare_for_pruning(prepared):
        yield "for speed", most, "pruning keeps all batches' forwards of a block waiting for its layers, if they fit"
    if spare_for_scoring(prepared):
        is_wide = prepared.scores_in_float32 or prepared.held_in is not None
        at_once = is_wide and bytes_of_weight(prepared) < 4 and is_widened_at_once(prepared)
        whole = "the model in float32 at once, which is counted above, and " if at_once else ""
        yield "for speed", most, f"scoring keeps {whole}activations of a backward if it takes one, where they fit"


def _arithmetic(prepared: Prepared) -> Iterator[Row]:
    """Say what a narrow model's products are computed in, where that is not its own type or would better not be."""
    named, is_lacking = dtype_name(prepared.dtype), prepared.is_on_cpu and is_slow(prepared.dtype)
    why = f"torch does products in {named} several times as slowly on this CPU"
    if prepared.held_in is not None and (is_lacking or prepared.recipe.model.compute == "float32"):
        yield "arithmetic", "products in float32", f"{why}; it stays in {named}" if is_lacking else "as the recipe asks"
    elif prepared.held_in is not None:
        yield "arithmetic", "products in float32", "this CPU is slow in a type that weights are in, or may be"
    elif is_lacking:
        yield "slow", f"products in {named}", f"{why}: model.compute: float32 is quicker, and prunes nearly the same"


def _free_disk() -> int | None:
    """Give the bytes that are free where runs go that are told no folder; None where the system does not say."""
    with suppress(OSError):
        return free_for(Path("runs") / "new")
    return None


def _there(
    what: str, there: int | None, own: _Taken, others: Mapping[Places, _Taken], least: Container[Places] = ()
) -> Iterator[Row]:
    """Say what there is of something, whether the recipe's run fits into it, and what each other choice takes.

    :param own: What the run takes of it with model and record where the recipe has them.
    :param others: What it takes with these elsewhere.
    :param least: Those of them of which that is the least that it takes.
    """
    said = [_said(places, taken, there, is_least=places in least) for places, taken in others.items()]
    if fits := own.fits(there):
        said = [f"the recipe as it is {fits}", *said]
    if said:
        yield what, "not known" if there is None else bytes_text(there), "; ".join(said)


def _said(places: Places, taken: _Taken, there: int | None, *, is_least: bool) -> str:
    fits = taken.fits(there)
    return f"{places} takes {'at least ' * is_least}{bytes_text(taken.peak)}{f', which {fits}' if fits else ''}"


def _device(prepared: Prepared) -> Iterator[Row]:
    if held := device_needs(prepared):
        made_of = f"the largest block {bytes_text(held.block)}, its statistics {bytes_text(held.statistics)}"
        made_of += f", a batch's input and output {bytes_text(held.activations)}"
        yield "device memory", bytes_text(held.peak), made_of


def _disk(prepared: Prepared, places: Places, written: DiskNeeds) -> Iterator[Row]:
    """Say what a run leaves, and what is there beside it until it is done."""
    rounds = prepared.recipe.round_count
    made_of = ", ".join(f"{name} {bytes_text(size)}" for name, size in written.files)
    yield "disk", bytes_text(sum(size for _, size in written.files)), made_of
    what = f"finished blocks{f' of {rounds} rounds' if rounds > 1 else ''}"
    if places.offloaded:
        before = ["of the round before"] if rounds > 1 else []
        before += ["before the model is refined"] if prepared.model_refiners else []
        what = f"masks of finished blocks{', and all weights ' if before else ''}{' and '.join(before)}"
    made_of = f"{what}, until model/ is complete"
    for name, size in (
        ("weights of another type or put together, for refiners and outside blocks", written.beside),
        ("earlier, while candidates are tried,", written.trying),
        ("gradients of the loss", written.gradients),
        ("recorded activations", written.spilled),
        ("what one refiner of the model leaves to the next", written.left),
        ("what it trains", written.trained),
        ("experts put together, twice while model/ is read back,", 2 * written.put_together),
        ("later, while a view is exported,", written.exporting),
    ):
        made_of += f"; {name} {bytes_text(size)}" if size else ""
    if written.longer:
        made_of += f"; {bytes_text(written.longer)} more for the refiner's steps if it takes over {_MINUTES}"
    is_least = places.spilled and _is_unknown(prepared)
    made_of += f"; recorded activations {_NOT_KNOWN}" if is_least else ""
    yield "disk meanwhile", f"{'at least ' * is_least}{bytes_text(written.meanwhile)}", made_of
