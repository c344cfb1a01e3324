"""Say of which code a run's own parts are, so that a part that was edited is told from what it was before.

A version does not tell: that of a package in work stays what it is, and a part by an import path has none.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ecoflap.core.disk.whole_files import sha256_of

_CODE = (".py", *EXTENSION_SUFFIXES)
_NOT_OURS = frozenset(("__pycache__", "site-packages", "node_modules"))


class PartCode(NamedTuple):
    """Says which file or folder a part's code was read from, and what is in it."""

    file: str
    sha256: str


NO_CODE = PartCode("no file", "none")
"""Stands for that of a module which is not used, or has no file."""

_read: dict[str, tuple[list[ModuleSpec | None], PartCode | None]] = {}
"""What was found of a module or package, with the specs of all of it that was imported then.

A file that is edited later is not what runs: only what is imported anew, which has another spec, is read again.
"""


def code_of_parts(used: Iterable[Callable[..., Any]]) -> dict[str, PartCode]:
    """Return what all code is that is used and comes with neither ecoflap nor Python.

    Of a module that is in no package it is its file, and of a package all of its modules, for parts share some. Of what
    a script or a notebook defines it is that class or function: what stands beside it is no part. Nothing is said of
    what no file or cell is known of.

    :param used: What makes the parts that are used.
    :return: By the module's name or the package's; in a script by its own.
    """
    found: dict[str, PartCode] = {}
    for one in used:
        top = str(getattr(one, "__module__", "")).partition(".")[0]
        name = str(getattr(one, "__qualname__", top)) if top == "__main__" else top
        if top not in {"ecoflap", *sys.stdlib_module_names} and name not in found:
            code = _written(one) if top == "__main__" else _imported(top)
            found |= {} if code is None else {name: code}
    return found


def digests_of(found: Mapping[str, PartCode]) -> dict[str, str]:
    """Give the SHA-256 of each."""
    return {name: code.sha256 for name, code in found.items()}


def _imported(top: str) -> PartCode | None:
    modules = [module for name, module in sorted(sys.modules.items()) if name == top or name.startswith(f"{top}.")]
    specs = [getattr(module, "__spec__", None) for module in modules]
    known = _read.get(top)
    if known is None or len(known[0]) != len(specs) or any(a is not b for a, b in zip(known[0], specs, strict=True)):
        _read[top] = specs, _code_in_module(sys.modules.get(top))
    return _read[top][1]


def _code_in_module(module: ModuleType | None) -> PartCode | None:
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    if folders:
        files = {file.relative_to(folder).as_posix(): file for folder in folders for file in _code_in(folder)}
        return PartCode(str(folders[0]), _sum_of(files)) if files else None
    file = getattr(module, "__file__", None)
    return PartCode(file, sha256_of(Path(file))) if file and Path(file).is_file() else None


def _code_in(folder: Path) -> Iterator[Path]:
    """Yield files of code, without what editors put beside it, and what was installed into an environment inside."""
    for inside, folders, names in os.walk(folder):
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_OURS]
        files = (Path(inside, name) for name in names if not name.startswith(".") and name.endswith(_CODE))
        yield from (file for file in files if file.is_file())


def _sum_of(files: Mapping[str, Path]) -> str:
    whole = sha256()
    for name, file in sorted(files.items()):
        whole.update(f"{name} {sha256_of(file)}\n".encode())
    return whole.hexdigest()


def _written(one: Callable[..., Any]) -> PartCode | None:
    """Give what a script or a notebook says of a class or function; None where that cannot be read, as of a prompt.

    Of a class in a notebook Python finds no file, and its functions are what there is to read.
    """
    inside = [value for value in vars(one).values() if inspect.isfunction(value)] if isinstance(one, type) else []
    for parts in ([one], inside):
        try:
            text = "".join(map(inspect.getsource, parts))
            file = inspect.getsourcefile(parts[0]) if parts else None
        except (OSError, TypeError):
            continue
        if text:
            return PartCode(file or "a script", sha256(text.encode()).hexdigest())
    return None
