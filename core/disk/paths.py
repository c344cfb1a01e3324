"""Turn a path as somebody wrote it into one that the system can be asked about, or say why no file can have it."""

import os
from pathlib import Path

from ecoflap.core.errors import EcoflapError, cut


class PathError(EcoflapError):
    """Says why a path is none that a file can have here, or why one may not look there."""


def absolute(path: Path | str, folder: Path) -> Path:
    """Make a path absolute, from a folder; ``~`` is the home directory.

    :raises PathError: Where no file can have that path, or the system lets nobody look whether one has.
    """
    return _usable(Path(os.path.abspath(folder / _expanded(path))), path)


def recordable(path: Path | str, folder: Path) -> Path:
    """Make a path absolute that a recipe names, and that a run records.

    :raises PathError: As of :func:`absolute`, and where it is not UTF-8, as the files are in which it is recorded.
    """
    found = absolute(path, folder)
    if not is_utf8(found):
        raise PathError(f"{str(found)!r} is not UTF-8, in which a run records its paths. Name it otherwise")
    return found


def is_utf8(path: Path) -> bool:
    """Say whether a path can be written in UTF-8; those on disks from before it may be in another encoding."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def from_here(path: str | os.PathLike[str]) -> Path:
    """Make a path absolute that was given to a function, from the working directory; ``~`` is the home directory.

    :raises PathError: Where no file can have that path, or the system lets nobody look whether one has.
    """
    # What a link leads to decides where .. behind it is, as for every other program.
    return _usable(Path.cwd() / _expanded(os.fspath(path)), path)


def _expanded(path: Path | str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # of ~name
        raise PathError(f"{cut(str(path))!r} begins with a user's home, and there is no such user") from error


def _usable(found: Path, written: str | os.PathLike[str]) -> Path:
    """Refuse a path that cannot even be asked for; in messages it is as it was written."""
    why = why_unusable(found)
    if why is not None:
        raise PathError(f"{cut(str(written))!r} is no path that can be read: {why}")
    return found


def why_unusable(path: Path | str) -> str | None:
    """Say why a path cannot even be asked for; None where it can, whether or not something is there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    except ValueError:
        return "it holds a character that names of files have not"
    return None
