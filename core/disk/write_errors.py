"""Say in a sentence why a file or folder could not be written, and what to do about it."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ecoflap.core.errors import RunError

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
"""What is wrong and what to do, by the number of the system's error."""


class NotWritten(RunError):
    """Says why a path could not be written.

    :param problems: The sentence, as of any error here.
    :ivar path: Which; None where this was built anew from its sentence.
    :ivar why: What is wrong and what to do, as it was found: room may have been made since.
    """

    def __init__(self, *problems: str, path: Path | None = None, why: str = "") -> None:
        super().__init__(*problems)
        self.path, self.why = path, why

    @classmethod
    def of(cls, path: Path, why: str) -> "NotWritten":
        """Give the error of a path."""
        return cls(f"{path} could not be written: {why}", path=path, why=why)


@contextmanager
def explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn a failure to write a path into a sentence; errors that are about something else pass through.

    A sentence on a file inside of what takes the path's place becomes one on the path: that file is gone by then.

    :param temporary: What is written first, to take the path's place.
    :raises RunError: Where the path cannot be written.
    """
    try:
        yield
    except NotWritten as error:
        if error.path is None or path == temporary or not error.path.is_relative_to(temporary):
            raise
        raise NotWritten.of(path, error.why) from error
    except Exception as error:
        cause = _cause(error)
        if cause is None or not _concerns(cause, path, temporary):
            raise
        raise NotWritten.of(path, _why(path, cause)) from error


def _cause(error: Exception) -> OSError | None:
    """Find the system's error in another. Libraries in Rust, as safetensors, only print it: ``... (os error 28)``."""
    if isinstance(error, OSError):
        return error
    printed = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(printed[1]), os.strerror(int(printed[1]))) if printed else None


def _concerns(cause: OSError, path: Path, temporary: Path) -> bool:
    """Tell whether an error is about the path. One that names no file is, where its cause is among the usual ones."""
    if cause.filename is None:
        return cause.errno in _CAUSES
    named = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, str | bytes | os.PathLike) else path
    return named.is_relative_to(temporary) or named == path or named in path.parents


def _why(path: Path, cause: OSError) -> str:
    what, cure = _CAUSES.get(cause.errno or 0, (cause.strerror or str(cause), "Choose another folder."))
    if cause.errno == errno.ENOSPC:
        what += f" ({free_for(path) / 1e6:,.1f} MB free)"
    return f"{what}. {cure}"


def free_for(path: Path) -> int:
    """Give the bytes that are free on a path's disk, also where its folder is not there yet."""
    there = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(there).free
