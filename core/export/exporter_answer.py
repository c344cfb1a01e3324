"""Hold what an exporter says that it wrote to its types and to its folder: an exporter may come from anywhere."""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ecoflap.core.contracts.answers import is_count, is_text, shown
from ecoflap.core.contracts.records import Check, Exported, StoredTensor
from ecoflap.core.errors import EcoflapError
from ecoflap.core.record.manifest import MANIFEST
from ecoflap.core.sealing.sums import SUMS


def check_exported(written: Any, folder: Path, exporter: str) -> Exported:
    """Give what an exporter answered.

    :param folder: The one that it was given.
    :param exporter: Its name, for messages.
    :raises EcoflapError: Where it is something else than a contract says, or names files that are not there.
    """
    if not isinstance(written, Exported):
        raise EcoflapError(
            f"the exporter {exporter} returned {type(written).__name__}, not Exported: it may be written for "
            f"another version of ecoflap. docs/hooks.md says what an exporter is."
        )
    given = {**vars(written), "dense_bytes": (written.dense_bytes,)}
    problems = [
        f"the exporter {exporter} returned {name} with {shown(item)}: {wanted}. docs/hooks.md says what an exporter is."
        for name, (wanted, is_right) in _WANTED.items()
        for item in _wrong(given[name], is_right)
    ]
    problems += [
        f"the exporter {exporter} names {file.name}, which is ours to write beside an export: name its file otherwise."
        for file in (written.files if not problems else ())
        if file.parent == folder and file.name in (MANIFEST, SUMS)
    ]
    problems += [
        f"the exporter {exporter} names {shown(str(file))}, which is no file of the folder that it was given."
        for file in (written.files if not problems else ())
        if not (_is_inside(file, folder) and file.is_file() and not file.is_symlink())
    ]
    if not (problems or written.files):
        problems.append(f"the exporter {exporter} names no file; files is a tuple of the paths that it has written.")
    if problems:
        raise EcoflapError(*problems)
    return written


def _is_inside(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and ".." not in file.relative_to(folder).parts


def _wrong(value: Any, is_right: Callable[[Any], bool]) -> list[Any]:
    """Give what is wrong in a tuple; what should be one and is none is wrong itself."""
    return [item for item in value if not is_right(item)] if isinstance(value, tuple) else [value]


def _is_stored(one: Any) -> bool:
    counts = ("nonzeros", "dense_bytes", "stored_bytes")
    return (
        isinstance(one, StoredTensor)
        and is_text(one.name)
        and is_text(one.form)
        and isinstance(one.shape, tuple)
        and all(map(is_count, (*one.shape, *(getattr(one, name) for name in counts))))
    )


def _is_check(one: Any) -> bool:
    return (
        isinstance(one, Check)
        and all(map(is_text, (one.file, one.view, one.runtime)))
        and all(isinstance(number, int | float) and isfinite(number) for number in (one.difference, one.tolerance))
        and isinstance(one.is_rounded, bool)
    )


_WANTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "files": ("files is a tuple of paths", lambda one: isinstance(one, Path)),
    "tensors": ("tensors is a tuple of StoredTensor, whose sizes are whole numbers", _is_stored),
    "checks": ("checks is a tuple of Check, whose differences are finite numbers", _is_check),
    "notes": ("notes is a tuple of sentences", is_text),
    "dense_bytes": ("dense_bytes is a number of bytes, or None", lambda one: one is None or is_count(one)),
}
"""By member of what an exporter answers: what it is to be, and whether an item of it is that."""
