"""List the SHA-256 of every file of a folder in its ``SHA256SUMS``, and hold the folder to it.

It is for files that stock runtimes read, which can hold no seal of ours. ``sha256sum --check SHA256SUMS`` reads it too,
and what ``sha256sum``, with or without ``--binary``, writes is read here:
as there, a line begins with a backslash where the name holds one or a line feed, and these are escaped.
Any change of the list itself makes it differ from the folder. Nothing here imports torch.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from ecoflap.core.disk.json_files import read_bytes
from ecoflap.core.disk.reading import ReadError, unread
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import FormatError

SUMS = "SHA256SUMS"

_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_ESCAPES: Mapping[str, str] = {"\\\\": "\\", "\\n": "\n"}
"""What stands in an escaped name for one of its characters."""


def write_sums(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> Path:
    """List a folder's files; what a dot hides is nobody's, such as what a file manager leaves.

    :param known: The SHA-256 of files that were hashed since they were written, by their path in the folder: they are
        not read again.
    :return: The list.
    """
    lines = [_line(known.get(name) or sha256_of(folder / name), name) for name in _names(folder)]
    (folder / SUMS).write_bytes("".join(lines).encode(errors="surrogateescape"))
    return folder / SUMS


def check_sums(
    folder: Path,
    way_out: str,
    *,
    only: Callable[[str], bool] = lambda _: True,
    added: Callable[[str], bool] | None = None,
    required: bool = False,
) -> None:
    """Refuse a folder in which a file is other than it was listed, or missing, or was added.

    :param way_out: Ends each sentence.
    :param only: Which files are looked at, by their path in the folder: a reader may check others itself.
    :param added: Which files may not have been added; by default those that are looked at.
    :param required: Refuse a folder without a list, too. Otherwise it is one that nothing of ours wrote.
    :raises FormatError: With everything that differs.
    """
    if not required and not (folder / SUMS).is_file():
        return
    if problems := [f"{problem} {way_out}" for problem in differing(folder, only, added)]:
        raise FormatError(*problems)


def check_listed(folder: Path, found: Callable[[], Mapping[str, str]]) -> None:
    """Refuse files that somebody takes a model from, and that are other than a list beside them says.

    What the list does not name is passed over, and so is a folder without one: the model is the user's own.

    :param found: Computes the SHA-256 of the files that are taken, by their paths in the folder.
    :raises FormatError: With everything that differs.
    """
    if not (folder / SUMS).is_file():
        return
    listed, way_out = read_sums(folder), f"Restore it; or, if it was changed on purpose, delete {SUMS}."
    problems = [
        f"{_is_another(folder / name, sha256, listed[name])} {way_out}"
        for name, sha256 in found().items()
        if listed.get(name, sha256) != sha256
    ]
    if problems:
        raise FormatError(*problems)


def differing(
    folder: Path, only: Callable[[str], bool] = lambda _: True, added: Callable[[str], bool] | None = None
) -> Iterator[str]:
    """Say in a sentence what each file that differs from the list is, and what the list says."""
    try:
        listed, there = read_sums(folder), set(_names(folder))
    except FormatError as error:
        yield from error.problems
        return
    except OSError as error:
        yield unread(error, folder)
        return
    for name, sha256 in listed.items():
        if not only(name):
            continue
        if name not in there:
            yield f"{folder / name} is missing: {SUMS} lists it."
        else:
            yield from _difference(folder / name, sha256)
    strangers = sorted(name for name in there - set(listed) if (added or only)(name))
    yield from (f"{folder / name} was added: {SUMS} does not list it." for name in strangers)


def _difference(path: Path, sha256: str) -> Iterator[str]:
    try:
        found = sha256_of(path)
    except ReadError as error:
        yield from error.problems
        return
    if found != sha256:
        yield _is_another(path, found, sha256)


def read_sums(folder: Path) -> Mapping[str, str]:
    """Read a folder's list: the SHA-256 of each file, by its path in the folder.

    :raises FormatError: Where there is none, or a line of it is not what is written here.
    """
    path = folder / SUMS
    try:
        text = read_bytes(path).decode(errors="surrogateescape")
    except OSError as error:
        raise FormatError(unread(error, path, "A list is meant there.")) from error
    except ValueError as error:
        raise FormatError(f"{path} cannot be read: {error}. A list is meant there.") from error
    found: dict[str, str] = {}
    *lines, rest = text.split("\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], 1):
        listed = listed_in(line)
        # A name leads nowhere else, and is listed once; capitals would be a bit that turned.
        if listed is None or not _is_inside(listed[0]) or listed[0] in found or listed[1] != listed[1].lower():
            raise FormatError(f"{path}:{number}: this line is not the SHA-256 of a file in the folder, listed once.")
        found[listed[0]] = listed[1]
    return found


def listed_in(line: str) -> tuple[str, str] | None:
    """Read a line as ``sha256sum`` writes it: a file's name and its SHA-256; None of any other line."""
    match = _LINE.fullmatch(line)
    name = None if match is None else _unescaped(match[3]) if match[1] else match[3]
    return None if match is None or name is None else (name, match[2])


def _is_another(file: Path, found: str, listed: str) -> str:
    return f"{file} is not what was written: its SHA-256 is {found[:16]}…, and {SUMS} beside it says {listed[:16]}…."


def _line(sha256: str, name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    mark = "" if escaped == name else "\\"
    return f"{mark}{sha256}  {escaped}\n"


def _unescaped(text: str) -> str | None:
    """Give the name that an escaped one stands for; None where it is the text of no name, or needs no escape."""
    if re.fullmatch(r"(?:[^\\]|\\[\\n])+", text) is None or "\\" not in text:
        return None
    return re.sub(r"\\[\\n]", lambda escape: _ESCAPES[escape[0]], text)


def _names(folder: Path) -> list[str]:
    """Name the files of a folder; one that a dot hides, or in a folder that one hides, is left out.

    :raises OSError: Where a folder may not be looked into, which would otherwise pass for an empty one.
    """
    found: list[str] = []
    for where, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        ours = [Path(where, name) for name in files if not name.startswith(".")]
        found += [path.relative_to(folder).as_posix() for path in ours if path.is_file()]
    return sorted(name for name in found if name != SUMS)


def _raise(error: OSError) -> None:
    raise error


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name == path.as_posix()
