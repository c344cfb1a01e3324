"""Write files that appear whole or not at all: beside their place, flushed to the disk, then renamed into it."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from ecoflap.core.disk.reading import ReadError, open_file, unread
from ecoflap.core.disk.write_errors import explained

PARTIAL = ".partial"
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
    temporary = _beside(path, PARTIAL)
    with explained(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _let_read_whom_umask_lets([temporary])
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
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
    temporary = _beside(path, PARTIAL)
    with explained(path, temporary):
        _restore(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _let_read_whom_umask_lets(list(temporary.rglob("*")))
            _sync_tree(temporary)
            _swap(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def delete_whole(path: Path) -> bool:
    """Delete a folder, if it is there. Half of one is never taken for a whole: it gets the name of leftovers first.

    One that the system does not let go stays as it is.

    :return: Whether nothing of it is left.
    """
    aside = _beside(path, PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    return not (path.exists() or aside.exists())


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be, as on another disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal, reading it in pieces.

    :raises ReadError: Where it cannot be read, or is no file.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReadError(unread(error, path)) from error


def removed_leftovers(folder: Path) -> list[Path]:
    """Delete, at any depth, what killed processes left half-written, and put back what they had set aside.

    :return: What was deleted.
    """
    for aside in sorted(folder.rglob(f".*{_REPLACED}")):
        _restore(aside.with_name(aside.name[1 : -len(_REPLACED)]))
    removed = []
    for leftover in sorted(folder.rglob(f".*{PARTIAL}")):
        # One inside another is gone with it.
        if leftover.exists() or leftover.is_symlink():
            _delete(leftover)
            removed.append(leftover)
    return removed


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def _let_read_whom_umask_lets(paths: Iterable[Path]) -> None:
    """Give files the mode that new ones have, where a library has made them its user's alone, as safetensors does.

    A file with another name elsewhere is left as it is: that one would change too.
    """
    found = [(path, path.lstat()) for path in paths]
    regular = [(path, is_.st_mode) for path, is_ in found if S_ISREG(is_.st_mode) and is_.st_nlink == 1]
    private = [(path, mode) for path, mode in regular if not mode & 0o077]
    others = _mode_of_a_new_file(private[0][0]) & 0o077 if private else 0
    for path, mode in private if others else ():
        with suppress(OSError):  # some mounts show every file as its user's alone, and let nobody change that
            path.chmod(mode | others)


def _mode_of_a_new_file(beside: Path) -> int:
    """Make one and look, since the umask is told only to whoever sets another, and that for all threads."""
    new = _beside(beside, PARTIAL)
    new.touch()
    try:
        return new.stat().st_mode & 0o666
    finally:
        new.unlink()


def sync(path: Path) -> None:
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
            sync(path)
    sync(folder)


def _swap(temporary: Path, path: Path) -> None:
    aside = _beside(path, _REPLACED)
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        _restore(path)
        raise
    sync(path.parent)
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
