"""List the SHA-256 of every file of a folder in its ``SHA256SUMS``, and hold the folder to it.

It is for files that stock runtimes read, which can hold no seal of ours. ``sha256sum --check SHA256SUMS`` reads it too.
Any change of the list itself makes it differ from the folder. Nothing here imports torch.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from ecoflap.core.disk.json_files import read_bytes
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import FormatError

SUMS = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_sums(folder: Path) -> Path:
    """List a folder's files; what a dot hides is nobody's, such as what a file manager leaves.

    :return: The list.
    """
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in _names(folder)]
    (folder / SUMS).write_bytes("".join(lines).encode())
    return folder / SUMS


def check_sums(
    folder: Path, way_out: str, *, only: Callable[[str], bool] = lambda _: True, required: bool = False
) -> None:
    """Refuse a folder in which a file is other than it was listed, or missing, or was added.

    :param way_out: Ends each sentence.
    :param only: Which files are looked at, by their path in the folder: a reader may check others itself.
    :param required: Refuse a folder without a list, too. Otherwise it is one that nothing of ours wrote.
    :raises FormatError: With everything that differs.
    """
    if not required and not (folder / SUMS).is_file():
        return
    if problems := [f"{problem} {way_out}" for problem in differing(folder, only)]:
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


def differing(folder: Path, only: Callable[[str], bool] = lambda _: True) -> Iterator[str]:
    """Say in a sentence what each file that differs from the list is, and what the list says."""
    try:
        listed = read_sums(folder)
    except FormatError as error:
        yield from error.problems
        return
    there = set(_names(folder))
    for name, sha256 in listed.items():
        if not only(name):
            continue
        if name not in there:
            yield f"{folder / name} is missing: {SUMS} lists it."
        elif (found := sha256_of(folder / name)) != sha256:
            yield _is_another(folder / name, found, sha256)
    added = sorted(name for name in there - set(listed) if only(name))
    yield from (f"{folder / name} was added: {SUMS} does not list it." for name in added)


def read_sums(folder: Path) -> Mapping[str, str]:
    """Read a folder's list: the SHA-256 of each file, by its path in the folder.

    :raises FormatError: Where there is none, or a line of it is not what is written here.
    """
    path = folder / SUMS
    try:
        text = read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}.") from error
    found: dict[str, str] = {}
    *lines, rest = text.split("\n")
    for number, line in enumerate([*lines, *([rest] if rest else [])], 1):
        match = _LINE.fullmatch(line)
        # A name leads nowhere else, and is listed once.
        if match is None or not _is_inside(match[2]) or match[2] in found:
            raise FormatError(f"{path}:{number}: this line is not the SHA-256 of a file in the folder, listed once.")
        found[match[2]] = match[1]
    return found


def _is_another(file: Path, found: str, listed: str) -> str:
    return f"{file} is not what was written: its SHA-256 is {found[:16]}…, and {SUMS} beside it says {listed[:16]}…."


def _names(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    ours = (path for path in found if not any(part.startswith(".") for part in path.parts))
    return sorted(path.as_posix() for path in ours if path != Path(SUMS))


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name == path.as_posix()
