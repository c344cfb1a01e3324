"""Exports of a run: a folder each, and a record of what is in it that is written last."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.files import sha256_of, whole_folder, write_whole
from ecoflap.core.part import Part
from ecoflap.core.parts import Adapter
from ecoflap.core.run import read_json

SURROUNDINGS = (".json", ".jinja", ".txt", ".model", ".md")
"""Endings of what lies beside the weights: configuration, tokenizer, notes."""


def export_names(parts: Sequence[Part]) -> list[str]:
    """A folder name for each export: the exporter's, numbered from the second of one kind on."""
    names: list[str] = []
    for part in parts:
        base = part.use.replace(":", ".")
        same = sum(name == base or name.startswith(f"{base}-") for name in names)
        names.append(f"{base}-{same + 1}" if same else base)
    return names


def is_exported(folder: Path, name: str, part: Part) -> bool:
    """Whether its files are all there, written by this exporter with these parameters."""
    record = _record(folder, name)
    if not record.is_file():
        return False
    written = read_json(record)
    there = {file: entry["bytes"] for file, entry in written["files"].items()}
    return written["exporter"] == part.plain() and there == _sizes(folder / name, list(there))


def export(folder: Path, name: str, part: Part, model: nn.Module, adapter: Adapter) -> None:
    """Write the folder, then its record; an older record goes first, so that it never speaks of newer files."""
    _record(folder, name).unlink(missing_ok=True)
    with whole_folder(folder / name) as inside:
        files = part.build()(model, adapter, inside)
        described = {str(file.relative_to(inside)): _described(file) for file in sorted(files)}
    write_whole(_record(folder, name), json.dumps({"exporter": part.plain(), "files": described}, indent=1))


def weight_bytes(folder: Path) -> int:
    """Of the files that hold weights."""
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(SURROUNDINGS))
    return sum(file.stat().st_size for file in files)


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _described(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
