"""Open a run folder: that of a new run or one to go on with, locked for this process, or that of a finished one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EACCES, EROFS
from pathlib import Path

from filelock import lock_descriptor

from ecoflap.core.disk.paths import is_utf8
from ecoflap.core.disk.reading import file_of
from ecoflap.core.disk.whole_files import NOT_THROUGH_LINKS, removed_leftovers
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.record.folder import RunFolder

ELSEWHERE = "name another folder with --folder"
"""What to do about a folder that cannot be used, where a command takes another one."""


@contextmanager
def open_run(path: Path, *, fresh: bool, elsewhere: str = ELSEWHERE) -> Iterator[RunFolder]:
    """Make or take up a run folder, for this process alone.

    A run that is refused before it has found anything leaves no folder where none was, and in one that was there, and
    no run's, nothing.

    :param fresh: Delete what an earlier run left there.
    :param elsewhere: What else than using this folder can be done, for messages.
    """
    refuse_name(path)
    folder = RunFolder(path)
    with _writable(path, "run folder", elsewhere):
        _refuse_strangers(folder)
        if not folder.is_ours:
            refuse_inside_run(path)
        there = _There.before(folder)
        path.mkdir(parents=True, exist_ok=True)
        if not fresh:
            _refuse_links(folder, elsewhere)
    with locked(folder.lock, "run folder", elsewhere):
        if fresh:
            _empty(folder)
        removed_leftovers(path)
        try:
            yield folder
        except EcoflapError:
            there.restore(folder)
            raise


@contextmanager
def locked(lock: Path, what: str, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there, for this process alone.

    :param what: What the folder is.
    :param elsewhere: What else than using this folder can be done, for messages.
    :raises RunError: Where another process holds it, or it cannot be written or locked.
    """
    with _writable(lock.parent, what, elsewhere):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | NOT_THROUGH_LINKS, 0o644)
    try:
        _lock(lock, descriptor, elsewhere)
        yield
    finally:
        os.close(descriptor)


def is_held(lock: Path) -> bool:
    """Say whether a process holds a lock. One that cannot be asked for, as on a disk without locks, is not held."""
    try:
        descriptor = _opened(lock)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _opened(lock: Path) -> int:
    """Open a lock to ask for it, also where it may only be read, as in another user's folder."""
    try:
        return os.open(lock, os.O_RDWR | NOT_THROUGH_LINKS)
    except OSError as error:
        if error.errno not in (EACCES, EROFS):
            raise
        return os.open(lock, os.O_RDONLY | NOT_THROUGH_LINKS)


@contextmanager
def _writable(path: Path, what: str, elsewhere: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way_out = elsewhere[0].upper() + elsewhere[1:]
        file = file_of(error)
        within = f"{file.relative_to(path)} in it: " if file is not None and path in file.parents else ""
        raise RunError(f"the {what} {path} cannot be written: {within}{error.strerror}. {way_out}") from error


@dataclass(frozen=True)
class _There:
    """Holds what was there before a run.

    :param ours: Whether a run was begun there.
    :param entries: Names in the folder.
    :param absent: The folder and those above it that were not there, the innermost first.
    """

    ours: bool
    entries: frozenset[str]
    absent: tuple[Path, ...]

    @classmethod
    def before(cls, folder: RunFolder) -> "_There":
        path = folder.path
        entries = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else frozenset()
        return cls(folder.is_ours, entries, tuple(one for one in (path, *path.parents) if not one.exists()))

    def restore(self, folder: RunFolder) -> None:
        """Delete what a run has begun, unless it has found anything, or was begun before."""
        if self.ours or folder.holds_results:
            return
        with suppress(OSError):  # what is said of the refusal counts for more; a folder with files of others stays
            for entry in [entry for entry in folder.path.iterdir() if entry.name not in self.entries]:
                _delete(entry)
            for made in self.absent:
                made.rmdir()


def _refuse_strangers(folder: RunFolder) -> None:
    """Refuse a folder with files that are no run's: nothing is written among them, still less deleted."""
    path = folder.path
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a link to what is not there. Make that folder, or name another one with --folder")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; a run needs a folder. Name another one with --folder")
    if path.is_dir() and not folder.is_ours and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise RunError(f"{path} is not empty, and no run was begun there. Name another folder with --folder")


def refuse_name(folder: Path) -> None:
    """Refuse a folder that a model cannot be saved in: its libraries are told the whole path, in UTF-8.

    :raises RunError: Where the path is in another encoding, as on disks from before UTF-8.
    """
    if not is_utf8(folder.absolute()):
        raise RunError(
            f"{str(folder.absolute())!r} is not UTF-8, and libraries that save a model take no other path. Rename the "
            f"folder, or name another with --folder"
        )


def refuse_inside_run(folder: Path, way_out: str = "Name another folder with --folder") -> None:
    """Refuse to begin something inside what belongs to a run, which that one deletes, replaces or calls a stranger's.

    :param way_out: Ends the message.
    :raises RunError: With the run.
    """
    path = folder.resolve()
    for around in filter(lambda one: one.is_ours, map(RunFolder, path.parents)):
        own = (around.model, around.exports, around.blocks, around.rounds, around.dense, around.scores.with_suffix(""))
        if (inside := next(filter(path.is_relative_to, own), None)) is not None:
            raise RunError(
                f"{folder} is inside {inside.name}/ of the run in {around.path}, whose files are its own. {way_out}"
            )


def _refuse_links(folder: RunFolder, elsewhere: str) -> None:
    """Refuse a folder with links, through which a run would write into files and folders that are not its own.

    ``model/`` may be one: it is read, or replaced as a whole.
    """
    links = [entry.name for entry in folder.path.iterdir() if entry.is_symlink() and entry != folder.model]
    if links:
        raise RunError(
            f"{folder.path}: {', '.join(sorted(links))} is a link, and a run writes into its own folder alone. Put "
            f"what it links to in its place, or {elsewhere}"
        )


def _lock(lock: Path, descriptor: int, elsewhere: str) -> None:
    """Take a folder for this process. Closing the file gives it back, as does the process's end, however it comes."""
    try:
        taken = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        raise RunError(f"{lock} cannot be locked: {error.strerror}. Name a folder on another disk") from error
    if not taken:
        raise RunError(f"another process is running in {lock.parent}. Wait for it, or {elsewhere}")
    if not lock.exists():  # another process was refused meanwhile, and has deleted what it had begun
        raise RunError(f"{lock.parent} was deleted while it was opened. Run again")


def _empty(folder: RunFolder) -> None:
    """Delete all that a run left. What says whose the folder is goes last: a process killed here leaves no stranger.

    The report goes first, for it says what else there is.
    """
    first, last = (folder.report,), (folder.fingerprints, folder.recipe)
    others = (entry for entry in folder.path.iterdir() if entry not in (folder.lock, *first, *last))
    for entry in [*first, *others, *last]:
        _delete(entry)


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        try:
            shutil.rmtree(entry)
        except OSError as error:
            error.filename = str(entry)  # it has the name alone of what is somewhere in there
            raise
    else:
        entry.unlink(missing_ok=True)


def require_finished(path: Path) -> RunFolder:
    """Open the folder of a finished run whose results are wanted."""
    folder = _begun_in(path)
    if not folder.report.is_file():
        raise unfinished(folder, "it has no report.json")
    return folder


def require_pruned(path: Path) -> RunFolder:
    """Open the folder of a run whose pruned model is wanted, which is complete before there is a report."""
    folder = _begun_in(path)
    if not folder.report.is_file() and not folder.is_pruned:
        raise unfinished(folder, "its model is not pruned yet")
    return folder


def unfinished(folder: RunFolder, why: str) -> RunError:
    """Make the error of a run that has not come to what is wanted of it."""
    return RunError(f"{folder.path}: this run is not finished: {why}. Run its recipe again to go on")


def _begun_in(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not path.is_dir():
        here = "" if path.is_absolute() else f", looked for in {Path.cwd()}"
        raise RunError(f"{path}: no run folder: there is no folder of that name{here}")
    if not folder.recipe.is_file():
        raise RunError(f"{path}: no run folder: it has no recipe.yaml")
    return folder
