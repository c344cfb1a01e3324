"""Say what keeps a model from staying in its files while it is pruned, or from going on there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError
from ecoflap.core.model.source import weight_files
from ecoflap.core.packed.into_model import packed_in
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.pruning.block_files import is_block_file
from ecoflap.core.pruning.finished_weights import FOLDERS
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import FROM_PYTHON


def offload_problems(prepared: Prepared) -> Iterator[str]:
    """Say everything in a recipe that asks for the whole model in memory although it is to stay on the disk."""
    if prepared.recipe.model.offload != "disk":
        return
    yield from (f"model.offload: disk {problem}. Use cpu, or leave it out." for problem in _of_model(prepared))


def _of_model(prepared: Prepared) -> Iterator[str]:
    source, options = prepared.source, prepared.adapter_options
    if source.model is not None:
        yield "is for a model that is read from its files, and this one is in memory"
        return
    if options.save_weights is None or options.save_surroundings is None:
        name = type(prepared.adapter).__name__
        yield f"takes an adapter that leaves weights in their files, and {name} reads them all into memory"
        return
    if packed_in(source) is not None:
        yield f"reads ordinary safetensors files, and the weights of {source.name} are packed"
        return
    other = [file.name for file in weight_files(source) if file.suffix != ".safetensors"]
    if other:
        yield f"reads safetensors files, and {source.name} has its weights in {other[0]}"


def refuse_moved(folder: RunFolder, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to take up finished blocks of a model in memory with one that stays in its files, or the other way round.

    Of the one a block keeps what pruning has changed, of the other all of its weights. Before the first block and
    behind the last one either goes on with what the other has left.

    :param begun: The recipe that the folder was last run with, as :meth:`Recipe.plain` writes it; so is ``now``.
    """
    before, after = (recipe["model"].get("offload") for recipe in (begun, now))
    if (before == "disk") == (after == "disk") or folder.is_pruned or not _has_blocks(folder):
        return
    raise RunError(
        f"{folder.path} was begun with model.offload {_shown(before)}, and has finished blocks, which model.offload "
        f"{_shown(after)} does not read: between disk and another value it may change until a block is finished, or "
        f"once all are. Go on with what it was, run into another folder with --folder, where reuse: [{folder.path}] "
        f"takes over the scores, or begin this one anew with --fresh {FROM_PYTHON}"
    )


def _has_blocks(folder: RunFolder) -> bool:
    """Say whether a block of any round, or of a trial, was finished."""
    kept = (folder.blocks, *folder.rounds.glob("*/blocks"))
    return any(
        is_block_file(file) for blocks in kept for file in blocks.rglob("*.safetensors") if not _holds_weights(file)
    )


def _holds_weights(file: Path) -> bool:
    """Say whether a file has weights of a block, which is finished when it has one beside their folder."""
    return file.parent.name in FOLDERS


def _shown(offload: str | None) -> str:
    return offload or "not set"
