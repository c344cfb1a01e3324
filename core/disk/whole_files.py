"""Write files that appear whole or not at all: beside their place, flushed to the disk, then renamed into it."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ecoflap.core.disk.json_files import json_value, read_bytes
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import RunError

_PARTIAL = ".partial"
"""Ends the name of what is being written; a leading dot hides it."""

_REPLACED = ".replaced"
"""Ends the name of a folder that was set aside for its successor."""


NOT_THROUGH_LINKS: int = getattr(os, "O_NOFOLLOW", 0)  # which Windows has not
"""A flag by which a file is not opened where a link stands in its place, which may lead to anybody's file."""


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file. Whoever looks, at any moment, finds the old one or the new one.

    :param data: What it is to hold; text is written as UTF-8.
    :raises RunError: Where it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file at, which takes its place when the block ends, and is removed if the block raises.

    :raises RunError: Where it cannot be written.
    """
    temporary = _beside(path, _PARTIAL)
    with explained(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder, which takes its place when the block ends, and is removed if the block raises.

    A folder that is there already is replaced at the end. That takes two renames: a process killed between them leaves
    the old one aside, and :func:`removed_leftovers` or the next call here puts it back.

    :raises RunError: Where it cannot be written.
    """
    temporary = _beside(path, _PARTIAL)
    with explained(path, temporary):
        _restore(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _sync_tree(temporary)
            _swap(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def append_line(path: Path, mapping: Mapping[str, Any]) -> None:
    """Add one JSON line to a .jsonl file, in one write, and flush it to the disk. What does not fit is taken back.

    A last line without its newline, which is what a killed process leaves, is cut off first.

    :raises RunError: Where it cannot be written.
    """
    line = json.dumps(mapping, ensure_ascii=False).encode() + b"\n"
    with explained(path, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        as_bytes = getattr(os, "O_BINARY", 0)  # Windows would write each line's end as two bytes
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NOT_THROUGH_LINKS | as_bytes, 0o666)
        try:
            _cut_torn_line(path, descriptor)
            _append(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _sync(path.parent)


def read_lines(path: Path, needs: Mapping[str, type] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Read the lines of a .jsonl file; there are none where there is no file.

    A last line without its newline is left out. The file stays as it is, for another process may be writing to it.

    :param needs: What each line must hold, by key.
    :raises RunError: Where a line holds no JSON object, or not what it must.
    """
    if not path.exists():
        return []
    # What follows the last newline is empty, or torn.
    try:
        whole = read_bytes(path).split(b"\n")[:-1]
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    return [_parsed(path, number, line, needs) for number, line in enumerate(whole, 1)]


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def removed_leftovers(folder: Path) -> list[Path]:
    """Delete, at any depth, what killed processes left half-written, and put back what they had set aside.

    :return: What was deleted.
    """
    for aside in sorted(folder.rglob(f".*{_REPLACED}")):
        _restore(aside.with_name(aside.name[1 : -len(_REPLACED)]))
    removed = []
    for leftover in sorted(folder.rglob(f".*{_PARTIAL}")):
        # One inside another is gone with it.
        if leftover.exists() or leftover.is_symlink():
            _delete(leftover)
            removed.append(leftover)
    return removed


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folder, and logs renames by itself
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() or path.is_file():
            _sync(path)
    _sync(folder)


def _swap(temporary: Path, path: Path) -> None:
    aside = _beside(path, _REPLACED)
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        _restore(path)
        raise
    _sync(path.parent)
    if aside.exists():
        _delete(aside)


def _restore(path: Path) -> None:
    """Undo a swap that was cut short: the old folder comes back, or is deleted where the new one is in its place."""
    aside = _beside(path, _REPLACED)
    if aside.exists() and path.exists():
        _delete(aside)
    elif aside.exists():
        os.rename(aside, path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _cut_torn_line(path: Path, descriptor: int) -> None:
    if os.fstat(descriptor).st_size == 0:
        return
    os.lseek(descriptor, -1, os.SEEK_END)
    if os.read(descriptor, 1) != b"\n":
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _parsed(path: Path, number: int, line: bytes, needs: Mapping[str, type]) -> dict[str, Any]:
    try:
        value = json_value(line)
    except ValueError as error:
        raise RunError(f"{path}:{number}: this line is not JSON ({error}). Restore the file, or delete it.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}:{number}: this line is not a JSON object. Restore the file, or delete it.")
    for key, wanted in needs.items():
        if not isinstance(value.get(key), wanted):
            what = f"this line has no {key}" if key not in value else f"the {key} of this line is no {wanted.__name__}"
            raise RunError(f"{path}:{number}: {what}. Restore the file, or delete it.")
    return value
