"""Find the packed export that a folder stands for: its own, or that of the run; where there is none, say what to do."""

from pathlib import Path
from shlex import quote

from ecoflap.core.errors import FormatError
from ecoflap.core.packed.shards import ENDING, holds_packed, packed_exports

_EXPORTS, _RECIPE = "exports", "recipe.yaml"


def exported_folder(folder: Path) -> Path:
    """Give the folder with packed weights: the one that is named, or of a run's folder the one of its exports.

    :raises FormatError: Where there is none, or a run has several; with what is there instead, and the way out.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder: name the one with the packed file and the model's configuration")
    if holds_packed(folder):
        return folder
    run = next((at for at in (folder, *folder.parents[:2]) if (at / _EXPORTS).is_dir() or _is_run(at)), None)
    found = [] if run is None else packed_exports(run)
    if folder == run and len(found) == 1:
        return found[0]
    raise FormatError(f"{folder} holds no packed file, *{ENDING}. {_way_out(folder, run, found)}")


def _is_run(folder: Path) -> bool:
    return (folder / _RECIPE).is_file() and ((folder / "model").is_dir() or (folder / "report.json").is_file())


def _way_out(folder: Path, run: Path | None, found: list[Path]) -> str:
    if found:
        several = "Its run has several: name" if len(found) > 1 else "Its run has one: name"
        return f"{several} {' or '.join(map(str, found))}."
    dense = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    ways = []
    if run is not None and _is_run(run):
        ways.append(f"`ecoflap export {quote(str(run))} --to safetensors` writes one.")
    if dense:
        ways.append(
            "What it holds is a dense checkpoint: load it as its own library does, with from_pretrained, and "
            "ecoflap.pack_model(model) then holds its zeros packed."
        )
    return " ".join(ways) or "The exporter safetensors writes one: name its folder, or the run's."
