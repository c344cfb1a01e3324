"""Files that appear whole or not at all: written beside their place, flushed to the disk, then renamed into it."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError

_PARTIAL = ".partial"
_REPLACED = ".replaced"

_FULL = "Make room, then run the same command again: what is finished is kept."
_ELSEWHERE = "Choose another folder, or change its permissions."
_RENAME = "Choose another folder, or move that away."
_CAUSES: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("your quota on this disk is used up", _FULL),
    errno.EFBIG: (
        "the file would be larger than the system allows (see ulimit -f)",
        "Raise the limit, then run again.",
    ),
    errno.EACCES: ("you may not write there", _ELSEWHERE),
    errno.EPERM: ("you may not write there", _ELSEWHERE),
    errno.EROFS: ("the file system is read-only", "Choose another folder."),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", _RENAME),
    errno.EEXIST: ("something else has that name", _RENAME),
    errno.EISDIR: ("a folder has that name", _RENAME),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one."),
    errno.EIO: ("the disk reports an error", "Check the disk, then run the same command again."),
}


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace a file by ``data``. Whoever looks, at any moment, finds the old one or the new one.

    :param data: Text is written as UTF-8.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes its place when the block ends, and is removed if the block raises."""
    temporary = _beside(path, _PARTIAL)
    with _explained(path, temporary):
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
    """An empty folder that takes its place when the block ends, and is removed if the block raises.

    A folder that is there already is replaced at the end. That takes two renames: a process killed between them leaves
    the old one aside, and :func:`removed_leftovers` or the next call here puts it back.
    """
    temporary = _beside(path, _PARTIAL)
    with _explained(path, temporary):
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
    """Add one JSON line to a .jsonl file, in one write, and see it to the disk. What does not fit is taken back.

    A last line without its newline, which is what a killed process leaves, is cut off first.
    """
    line = json.dumps(mapping, ensure_ascii=False).encode() + b"\n"
    with _explained(path, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _cut_torn_line(path, descriptor)
            _append(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            _sync(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; none where there is no file.

    A last line without its newline is left out. The file stays as it is, for another process may be writing to it.
    """
    if not path.exists():
        return []
    # What follows the last newline is empty, or torn.
    whole = path.read_bytes().split(b"\n")[:-1]
    return [_parsed(path, number, line) for number, line in enumerate(whole, 1)]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
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
    descriptor = os.open(path, os.O_RDONLY)
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
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RunError(f"{path}:{number}: this line is not JSON ({error}). Restore the file, or delete it.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}:{number}: this line is not a JSON object. Restore the file, or delete it.")
    return value


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a sentence; errors that are about something else pass through."""
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        if cause is None or not _concerns(cause, path, temporary):
            raise
        raise RunError(_sentence(path, cause)) from error


def _cause(error: Exception) -> OSError | None:
    """The OSError in it. Libraries in Rust, safetensors among them, only print theirs: ``... (os error 28)``."""
    if isinstance(error, OSError):
        return error
    told = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def _concerns(cause: OSError, path: Path, temporary: Path) -> bool:
    if cause.filename is None:
        return cause.errno in _CAUSES
    named = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, str | bytes | os.PathLike) else path
    return named.is_relative_to(temporary) or named == path or named in path.parents


def _sentence(path: Path, cause: OSError) -> str:
    what, cure = _CAUSES.get(cause.errno or 0, (cause.strerror or str(cause), "Choose another folder."))
    if cause.errno == errno.ENOSPC:
        what += f" ({_free(path) / 1e6:,.1f} MB free)"
    return f"{path} could not be written: {what}. {cure}"


def _free(path: Path) -> int:
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(there).free
