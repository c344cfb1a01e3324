"""Tell whether files of a model are still those whose sums were taken, without reading them again as a rule."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ecoflap.core.disk.whole_files import sha256_of


class Stamp(NamedTuple):
    """What a file's change shows by. ``changed_ns`` and ``inode`` cannot be put back as the time of writing can."""

    size: int
    written_ns: int
    changed_ns: int
    inode: int

    @property
    def contents(self) -> tuple[int, int]:
        """Give what is another as soon as something was written, unless somebody hides it."""
        return self.size, self.written_ns


def stamp_of(file: Path) -> Stamp:
    """Give the stamp of a file; its length is -1 where it is gone."""
    try:
        status = file.stat()
    except OSError:
        return Stamp(-1, 0, 0, 0)
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class HashedFiles:
    """Files that are hashed, with what their changes show by since before they were.

    A file that has got another name, other rights or a copy in its place has another stamp and the same contents, so it
    is hashed once more before anybody is told that it changed. A path is followed anew each time: it may be a link, or
    lie behind one, that leads elsewhere by now; by another path to it a file is known as long as no link does.

    :param files: Which; their stamps are taken at once.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._stamps = {file.absolute(): stamp_of(file) for file in files}
        self._by_target = {file.resolve(): file for file in self._stamps}
        self._digests: Mapping[Path, str] = {}

    def __contains__(self, file: Path) -> bool:
        return file.absolute() in self._stamps or file.resolve() in self._by_target

    def know(self, digests: Mapping[Path, str]) -> None:
        """Know the SHA-256 that each file was found to have; of one without, its length and time of writing tell."""
        self._digests = {file.absolute(): digest for file, digest in digests.items()}

    def changed(self) -> list[Path]:
        """List the files whose contents are no more what was hashed."""
        return [file for file in self._stamps if self.is_changed(file)]

    def is_changed(self, file: Path) -> bool:
        """Say whether the contents of one of these files are no more what was hashed."""
        file = file.absolute() if file.absolute() in self._stamps else self._by_target[file.resolve()]
        before, now = self._stamps[file], stamp_of(file)
        if now == before:
            return False
        if now.contents != before.contents:
            return True
        digest = self._digests.get(file)
        if digest is not None and sha256_of(file) != digest:
            return True
        self._stamps[file] = now
        return False
