"""Write the exports of a run: a folder each, and a record of what is in it that is written last."""

from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.disk.whole_files import sha256_of, whole_folder
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import FormatError, RunError, first_of
from ecoflap.core.export.exporter_answer import check_exported
from ecoflap.core.export.surroundings import is_weights
from ecoflap.core.export.write_manifest import RunOrigin, deflated_share, describe_files, write_manifest
from ecoflap.core.guards.left_as_given import left_as_given
from ecoflap.core.guards.processor_lent import processor_lent
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import MANIFEST, Manifest, ManifestFile, ManifestRun, read_manifest
from ecoflap.core.sealing.sealed_text import write_sealed_json
from ecoflap.core.sealing.sums import SUMS, write_sums
from ecoflap.core.sealing.validation import read_validated
from ecoflap.core.seeding import seed_for, seeded

_CURE = (
    "Other exports are written of the same model. Have it work on a copy: "
    "{name: tensor.half() for name, tensor in pruned.model.state_dict().items()} and not pruned.model.half()"
)


class ExportRecord(BaseModel):
    """Says what an export was written by, and every file of it: the record that lies beside its folder.

    :param exporter: The recipe's entry for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    exporter: dict[str, Any]
    files: dict[str, ManifestFile]


def export_names(parts: Sequence[PartSpec]) -> list[str]:
    """Give a folder name for each export: the exporter's, numbered from the second of one kind on."""
    names: list[str] = []
    for part in parts:
        base = part.use.replace(":", ".")
        numbered = (f"{base}-{number}" for number in count(2))
        names.append(next(name for name in chain([base], numbered) if name not in names))
    return names


def is_exported(folder: Path, name: str, part: PartSpec) -> bool:
    """Say whether an export's files are all there, written by this exporter with these parameters.

    :raises FormatError: Where one is there and is not what was written: it may be somebody's work, and is not replaced.
    :raises RunError: Where a folder stands in the place of the record.
    """
    record = record_of(folder, name)
    _refuse_folder(record)
    if not record.is_file():
        return False
    written = read_record(record)
    if written.exporter != part.plain() or not all((folder / name / file).is_file() for file in written.files):
        return False
    changed = [file for file, entry in written.files.items() if sha256_of(folder / name / file) != entry.sha256]
    if changed:
        raise FormatError(
            *(
                f"{folder / name / file} is not what was written: its SHA-256 is another than {record.name} says. "
                f"Restore it; or move the folder {name} away, and the run exports it again."
                for file in changed
            )
        )
    return True


def read_record(path: Path) -> ExportRecord:
    """Read the record of an export, which lies beside its folder.

    :raises FormatError: Where it is not what was written.
    """
    return read_validated(path, ExportRecord, FormatError, "Restore it; or delete it, and the run exports that again.")


def is_recorded(folder: Path, name: str, part: PartSpec | None = None) -> bool:
    """Say whether an export of this name was finished, by whatever exporter or by this one; its files may be gone."""
    record = record_of(folder, name)
    is_there = record.is_file() and (folder / name).exists()
    return is_there and (part is None or read_record(record).exporter == part.plain())


def export(
    folder: Path, name: str, part: PartSpec, pruned: PrunedModel, origin: RunOrigin | None = None
) -> tuple[str, ...]:
    """Write an export's folder, then its record; an older record goes before, so that it speaks of no newer files.

    :param folder: The folder of all exports.
    :param name: The name of this one's folder in it.
    :param origin: The run it comes from, for the manifest.
    :return: Sentences of the exporter for the user.
    :raises RunError: Where a folder stands in the place of the record, or somebody's own in that of the export, which
        would have to be deleted for it.
    """
    _refuse_folder(record_of(folder, name))
    _refuse_others(folder, name)
    with whole_folder(folder / name) as inside:
        who = f"the exporter {part.use}"
        left = left_as_given(who, pruned.model, _CURE, is_on_disk=pruned.offloaded)
        lent = processor_lent(pruned.adapter, part.factory)
        with left, lent, blaming(who), explained(folder / name, inside), seeded(seed_for(0, "export")):
            answered = part.built(pruned, inside)
        written = check_exported(answered, inside, part.use)
        # Hashed once: manifest, list and record say the same of a file that may be larger than memory.
        files = describe_files(inside, written.files)
        manifest = write_manifest(inside, part, pruned.model, written, files, origin)
        sums = write_sums(inside, {name: entry.sha256 for name, entry in files.items()})
        files |= describe_files(inside, (manifest, sums))
        record_of(folder, name).unlink(missing_ok=True)
    record = ExportRecord(exporter=part.plain(), files=dict(sorted(files.items())))
    write_sealed_json(record_of(folder, name), record.model_dump())
    return written.notes


def origin_of(folder: RunFolder, source: str, model: nn.Module) -> RunOrigin:
    """Say what all exports of one run come from.

    :param source: The dense model's, as the recipe names it.
    """
    name = Path(source).name if Path(source).is_absolute() else source
    run = ManifestRun(source=name, plan=sha256_of(folder.plan), masks=sha256_of(folder.masks))
    return RunOrigin(run, deflated_share(model))


def manifests(folder: Path, names: Iterable[str]) -> dict[str, Manifest]:
    """Read the manifest of each export that is there, by its name; a finished run's may have been deleted."""
    paths = {name: folder / name / MANIFEST for name in names}
    return {name: read_manifest(path) for name, path in paths.items() if path.is_file()}


def weight_bytes(folder: Path, name: str) -> int:
    """Count the bytes of an export's files that hold weights, by its record; what somebody put beside them is none.

    Of an export that was deleted nothing is counted.

    :param folder: The folder of all exports.
    :raises FormatError: Where the record is not what was written.
    """
    if not is_recorded(folder, name):
        return 0
    files = read_record(record_of(folder, name)).files
    return sum(file.bytes for path, file in files.items() if is_weights(path))


def _refuse_folder(record: Path) -> None:
    if record.is_dir() and not record.is_symlink():
        raise RunError(
            f"{record} is a folder, and what is known of the export {record.stem} is written there. Move it away, and "
            f"run again"
        )


def _refuse_others(folder: Path, name: str) -> None:
    """Refuse a folder in the place of an export that no run has written, or files in it that none has."""
    there = folder / name
    if is_recorded(folder, name) or (there / MANIFEST).is_file():
        own = _unlisted(folder, name)
        if own:
            raise RunError(
                f"{there} holds what no export has written, {first_of(own)}, and would be replaced with it. Move it "
                f"away, and give the same command again"
            )
        return
    if there.is_file() or any(not entry.name.startswith(".") for entry in there.glob("*")):
        raise RunError(
            f"{folder / name} was written by no run, and the export would be put in its place. Move it away, and run "
            f"again"
        )


def _unlisted(folder: Path, name: str) -> list[str]:
    """Name the files in an export's folder that its manifest does not know; none that are hidden."""
    there = folder / name
    try:
        listed = {*read_manifest(there / MANIFEST).files, MANIFEST, SUMS}
    except FormatError:  # what is damaged is told elsewhere, and may be replaced
        return []
    found = (path.relative_to(there) for path in sorted(there.rglob("*")) if not path.is_dir() or path.is_symlink())
    visible = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
    return [path for path in visible if path not in listed]


def record_of(folder: Path, name: str) -> Path:
    """Give the file that says that an export is complete, and what is in it."""
    return folder / f"{name}.json"
