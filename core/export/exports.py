"""Exports of a run: a folder each, and a record of what is in it that is written last."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Exported
from ecoflap.core.disk.whole_files import sha256_of, whole_folder, write_whole
from ecoflap.core.export.manifest import MANIFEST, Origin, deflated_share, described, is_weights, write_manifest
from ecoflap.core.recipe.part_spec import Part
from ecoflap.core.record.folder import RunFolder, read_json


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


def export(
    folder: Path, name: str, part: Part, model: nn.Module, adapter: Adapter, origin: Origin | None = None
) -> tuple[str, ...]:
    """Write the folder, then its record; an older record goes first, so that it never speaks of newer files.

    :param origin: The run it comes from, for the manifest.
    :return: What the user should know of it.
    """
    _record(folder, name).unlink(missing_ok=True)
    with whole_folder(folder / name) as inside:
        returned = part.build()(model, adapter, inside)
        written = returned if isinstance(returned, Exported) else Exported(tuple(returned))
        files = write_manifest(inside, part, model, written, origin)
        entries = {str(file.relative_to(inside)): described(file) for file in sorted(files)}
    write_whole(_record(folder, name), json.dumps({"exporter": part.plain(), "files": entries}, indent=1))
    return written.notes


def origin_of(folder: RunFolder, source: str, model: nn.Module) -> Origin:
    """What the exports of one run share."""
    name = Path(source).name if Path(source).is_absolute() else source
    return Origin(name, sha256_of(folder.plan), sha256_of(folder.masks), deflated_share(model))


def manifests(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """By export; without those that another version wrote, which had none."""
    paths = {name: folder / name / MANIFEST for name in names}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def weight_bytes(folder: Path) -> int:
    """Of the files that hold weights."""
    files = (file for file in folder.rglob("*") if file.is_file() and is_weights(file.name))
    return sum(file.stat().st_size for file in files)


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
