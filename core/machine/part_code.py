"""Say of which code a run's own parts are, so that a part that was edited is told from what it was before.

A version does not tell: that of a package in work stays what it is, and a part by an import path has none.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ecoflap.core.disk.whole_files import sha256_of


class Source(NamedTuple):
    """Says which file or folder code was read from, and what is in it."""

    file: str
    sha256: str


NO_SOURCE = Source("no file", "none")
"""Stands for that of a module which is not used, or has no file."""


def sources(used: Iterable[Callable[..., Any]]) -> dict[str, Source]:
    """Return the source of all code that is used and comes with neither ecoflap nor Python.

    Of a module that is in no package it is its file, and of a package all of its modules, for parts share some. Of what
    a script or a notebook defines it is that class or function: what stands beside it is no part.

    :param used: What makes the parts that are used.
    :return: By the module's name or the package's; in a script by its own.
    """
    found: dict[str, Source] = {}
    for one in used:
        name = str(getattr(one, "__module__", ""))
        top = name.partition(".")[0]
        if top not in {"ecoflap", *sys.stdlib_module_names, *found} and (source := _source(top, one)):
            found[getattr(one, "__qualname__", top) if top == "__main__" else top] = source
    return found


def digests_of(found: Mapping[str, Source]) -> dict[str, str]:
    """Give the SHA-256 of each source."""
    return {name: source.sha256 for name, source in found.items()}


def told_as_versions(found: Mapping[str, Source]) -> dict[str, str]:
    """Name each source as reports do beside the versions of libraries."""
    return {f"code of {name}": f"SHA-256 {source.sha256[:12]}" for name, source in found.items()}


def _source(top: str, one: Callable[..., Any]) -> Source | None:
    module = sys.modules.get(top)
    if top == "__main__":
        return _written(one)
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    if folders:
        files = (path for folder in folders for path in sorted(folder.rglob("*.py")))
        return Source(str(folders[0]), _sum_of(files))
    file = getattr(module, "__file__", None)
    return Source(file, sha256_of(Path(file))) if file and Path(file).is_file() else None


def _sum_of(files: Iterable[Path]) -> str:
    whole = sha256()
    for file in files:
        whole.update(f"{file.name} {sha256_of(file)}\n".encode())
    return whole.hexdigest()


def _written(one: Callable[..., Any]) -> Source | None:
    """Give what a script or a notebook says of a class or function; None where that cannot be read, as of a prompt."""
    try:
        text, file = inspect.getsource(one), inspect.getsourcefile(one)
    except (OSError, TypeError):
        return None
    return Source(file or "a script", sha256(text.encode()).hexdigest())
