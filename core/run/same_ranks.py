"""The processes of one run have to do the same, on the same model and data and by the same code."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import PicklingError
from secrets import token_hex
from typing import Any

from ecoflap.core.disk.whole_files import PARTIAL, write_whole
from ecoflap.core.errors import RunError
from ecoflap.core.machine.part_code import NO_CODE, PartCode
from ecoflap.core.ranks.parcels import packed
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.recipe.differences import differences
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.identity import OTHER_BITS

_OF_THE_FIRST = ("reuse", "model.config")
"""Keys that the first process alone reads, or a plan."""


def check_same_asked(ranks: Ranks, recipe: Recipe, folder: Path) -> None:
    """Refuse processes that were given different recipes or run folders, before anything in one of them is changed.

    :param folder: That which this process was given. The first writes into its own, and all may read there.
    :raises RunError: With the ranks and what differs.
    """
    first, *others = ranks.gather((recipe.plain(), str(folder.absolute()), str(folder.resolve())))
    problems = []
    for rank, own in enumerate(others, 1):
        # A run may go on with other measures, or the weights elsewhere, but all of its processes take part in each.
        problems += [f"rank {rank} has another recipe: {one}" for one in differences(first[0], own[0], _OF_THE_FIRST)]
        if own[1] != first[1] and own[2] != first[2]:  # one path may lead elsewhere on a machine whose disk it is
            problems.append(f"rank {rank} has another folder: {first[2]} vs {own[2]}")
    _refuse(problems, "rank 0's vs its own")


def check_same_code(ranks: Ranks, versions: Mapping[str, str], code: Mapping[str, PartCode]) -> None:
    """Refuse processes that have other versions or other code.

    :param versions: Those of this process.
    :param code: That of their own parts.
    :raises RunError: With the ranks and what differs.
    """
    first, *others = ranks.gather((dict(versions), dict(code)))
    problems = []
    for rank, own in enumerate(others, 1):
        problems += [f"rank {rank} has {one}" for one in _other_versions(first[0], own[0])]
        problems += [f"rank {rank} has {one}" for one in _other_code(first[1], own[1])]
    _refuse(problems, "rank 0's vs its own")


def refuse_numbered_device(ranks: Ranks, recipe: Recipe) -> None:
    """Refuse a device by its number where several processes would all compute on that one.

    :raises RunError: With what to write instead.
    """
    kind, colon, _ = recipe.model.device.partition(":")
    if ranks.size > 1 and colon:
        raise RunError(
            f"model.device: {recipe.model.device} names one device, and {ranks.size} processes would share it. Say "
            f"{kind}, and each process takes the one of its number on its machine; CUDA_VISIBLE_DEVICES says which "
            f"there are"
        )


def check_same_device(ranks: Ranks, device: str) -> None:
    """Refuse processes of which some compute on a GPU and some do not, as where torch sees none on one machine.

    :param device: That of this process.
    :raises RunError: With the ranks and the kinds of their devices.
    """
    of_first, *others = (one.partition(":")[0] for one in ranks.gather(device))
    problems = [
        f"rank {rank} computes on {kind}, and rank 0 on {of_first}"
        for rank, kind in enumerate(others, 1)
        if kind != of_first
    ]
    _refuse(problems, "all have to on the same: see that torch finds a GPU on each machine, or say model.device: cpu")


def check_same_disk(ranks: Ranks, folder: Path) -> None:
    """Refuse processes of which some do not see what the first writes into the run folder, as on a disk of their own.

    :param folder: It is there. Nothing is left in it.
    :raises RunError: With the ranks.
    """
    if ranks.size == 1:
        return
    left = folder / ranks.first(lambda: _left_in(folder))
    seen = ranks.gather(left.is_file())
    ranks.at_first(lambda: left.unlink(missing_ok=True))
    _refuse(
        [f"rank {rank} does not see what rank 0 writes into {folder}" for rank, one in enumerate(seen) if not one],
        "all processes of a run have to see the disk of its folder",
    )


def _left_in(folder: Path) -> str:
    """Leave an empty file in a folder, and give its name; killed, a process leaves it among what is half-written."""
    # Of a name that nobody has asked for before no network file system remembers that it was not there.
    name = f".{token_hex(8)}{PARTIAL}"
    write_whole(folder / name, b"")
    return name


def other_arithmetic(ranks: Ranks, own: Mapping[str, str | int]) -> list[str]:
    """Say which processes compute by something else than the first, so that a run has not the bits of one process.

    :param own: By what this process computes.
    """
    first, *others = ranks.gather(dict(own))
    found = []
    for rank, one in enumerate(others, 1):
        differing = [f"{name} {one[name]} where rank 0 has {first[name]}" for name in first if one[name] != first[name]]
        if differing:
            found.append(f"rank {rank} computes with {', '.join(differing)}: {OTHER_BITS}")
    return found


def check_same_found(ranks: Ranks, fingerprints: Mapping[str, Any]) -> None:
    """Refuse processes that have found different models or data.

    :param fingerprints: By what they are of.
    :raises RunError: With the ranks and what differs.
    """
    of_first, *others = ranks.gather(dict(fingerprints))
    problems = [
        f"rank {rank} has found another {what} than rank 0"
        for rank, own in enumerate(others, 1)
        for what in of_first
        if own.get(what) != of_first[what]
    ]
    _refuse(problems, "their files differ from machine to machine, or were changed just now")


def check_same_evaluated(ranks: Ranks, evaluations: Iterable[tuple[int, Evaluation]]) -> None:
    """Refuse processes that share an evaluator's data and have other files of it: each would measure its own.

    :param evaluations: Each with its number in the recipe, from 1; not looked at by a process alone.
    :raises RunError: With the ranks and the evaluators.
    """
    if ranks.size > 1:
        dealt = {at: one for at, one in evaluations if one.evaluator.options.dealt is not None}
        names = (f"copy of the files of evaluate, number {at}: {one.evaluator.use}," for at, one in dealt.items())
        check_same_found(ranks, {name: one.files for name, one in zip(names, dealt.values(), strict=True)})


def check_sendable(ranks: Ranks, pruners: Mapping[str, PartSpec]) -> None:
    """Refuse statistics that cannot be sent to another process, before hours are spent on taking them.

    :param pruners: By the tower, which counts for nothing here.
    :raises RunError: With their names.
    """
    needs = {need: pruner.use for pruner in pruners.values() for need in pruner.options.needs} if ranks.size > 1 else {}
    problems = []
    for need, pruner in needs.items():
        try:
            packed(need(8))
        except (AttributeError, TypeError, PicklingError) as error:
            problems.append(
                f"the statistic {need.__name__} of the pruner {pruner} cannot be sent from process to process: "
                f"{error}. Define it at the top of a module, with what pickle can write in it, or run in one process"
            )
    if problems:
        raise RunError(*problems)


def check_enough_batches(ranks: Ranks, counts: Mapping[str, int]) -> None:
    """Refuse more processes than there are batches to share.

    :param counts: How many there are, by what they are for.
    :raises RunError: With both numbers, and what to do.
    """
    problems = [
        f"there are {ranks.size} processes and {count} batches of {what}, of which each takes one at least: start "
        f"fewer, or set batch_size lower, or samples higher"
        for what, count in counts.items()
        if count < ranks.size
    ]
    if problems:
        raise RunError(*problems)


def _other_versions(first: Mapping[str, str], own: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys([*first, *own]):
        if first.get(name) != own.get(name):
            yield f"{name} {own.get(name, 'absent')}, and rank 0 {first.get(name, 'absent')}"


def _other_code(first: Mapping[str, PartCode], own: Mapping[str, PartCode]) -> Iterator[str]:
    for name in dict.fromkeys([*first, *own]):
        both = first.get(name, NO_CODE), own.get(name, NO_CODE)
        if both[0].sha256 != both[1].sha256:
            told = " vs ".join(f"{one.file} of SHA-256 {one.sha256[:12]}" for one in both)
            yield f"another source of {name}, which is to be the same everywhere: {told}"


def _refuse(problems: list[str], why: str) -> None:
    if problems:
        raise RunError(*(f"{problem} ({why})" for problem in problems))
