"""Open files for reading, and say in a sentence why one cannot be read, and what to do about it."""

import errno
import os
import stat
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

from ecoflap.core.errors import EcoflapError, FormatError, first_of

_LEAVE = "Change its permissions, or ask whom it belongs to."
_CURES: Mapping[int, str] = {
    errno.EACCES: _LEAVE,
    errno.EPERM: _LEAVE,
    errno.EIO: "Check the disk, then run the same command again.",
}
"""What to do whatever is read, by the number of the system's error: to write it anew would be the wrong advice."""
_OTHERWISE: Mapping[int, str] = {
    errno.EISDIR: "A file is meant there.",
    errno.ELOOP: "Put what is meant in the place of the link.",
}
"""What to do where whoever reads knows nothing better."""


class ReadError(EcoflapError):
    """Says why a file cannot be read."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file. Another might never end: a pipe is waited on until somebody writes, a device goes on.

    :raises OSError: Where it is not there or may not be read, or is something else; with its path.
    """
    at_once = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # of which Windows has the second alone
    descriptor = os.open(path, os.O_RDONLY | at_once)
    try:
        refuse_irregular(path, descriptor)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_folder(path: Path, ending: str) -> None:
    """Refuse a folder where a file is meant, and name those in it that may be.

    :param ending: How the names of such files end.
    :raises FormatError: Which names them.
    """
    if path.is_dir():
        found = files_in(path, ending)
        named = f"name the file in it that is meant, of {found}" if found else f"it holds no {ending} file"
        raise FormatError(f"{path} is a folder: {named}.")


def files_in(folder: Path, ending: str) -> str:
    """Name the files of a folder by an ending, for a message; empty where there are none, or nobody may look."""
    try:
        return first_of(sorted(str(path) for path in folder.iterdir() if path.name.endswith(ending)), 5)
    except OSError:
        return ""


def refuse_irregular(path: Path, descriptor: int) -> None:
    """Refuse what was opened, unless it is a regular file.

    :raises OSError: With its path.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no file, but a pipe, a device or the like", str(path))


def why_unread(error: OSError, path: Path) -> str:
    """Say what the system has against reading a path, without its name."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "it is a link to what is not there"
    return error.strerror or str(error) or type(error).__name__


def unread(error: OSError, path: Path | None = None, way_out: str = "") -> str:
    """Say in a sentence that a file or folder cannot be read, why, and what to do.

    :param path: What was being read, for where the error names nothing.
    :param way_out: What to do where no permission and no disk is the cause.
    """
    file, number = file_of(error) or path or Path("a file"), error.errno or 0
    cure = _CURES.get(number) or way_out or _OTHERWISE.get(number, "Restore it, or name another.")
    return f"{file} cannot be read: {why_unread(error, file)}. {cure}"


def file_of(error: OSError) -> Path | None:
    """Give the file or folder that an error of the system is about, where it names one."""
    named = error.filename
    return Path(os.fsdecode(named)) if isinstance(named, str | bytes | os.PathLike) else None


def what_to_mend(error: Exception) -> str | None:
    """Say what a user can mend about an error; None where it is of another sort, and its traceback is wanted."""
    if isinstance(error, EcoflapError):
        return str(error)
    if isinstance(error, OSError) and (file := file_of(error)) is not None:
        return refused(error, file)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of what is printed
        return f"the output could not be written: {error.strerror}. Make room, then run the same command again."
    return None


def refused(error: OSError, file: Path) -> str:
    """Say in two sentences what the system refused to do with a file, where nobody has explained it."""
    number = error.errno or 0
    cure = _CURES.get(number) or _OTHERWISE.get(number, "Put that right, then run the same command again.")
    return f"{file} cannot be read or written: {why_unread(error, file)}. {cure}"
