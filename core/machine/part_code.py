"""Say of which code a run's own parts are, so that a part that was edited is told from what it was before.

A version does not tell: that of a package in work stays what it is, and a part by an import path has none.
"""

import ast
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path, PurePath
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch

from ecoflap.core.disk.whole_files import sha256_of

_CODE = (".py", *EXTENSION_SUFFIXES)
_NOT_OURS = frozenset(("__pycache__", "site-packages", "node_modules"))
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_PLAIN = (bool, int, float, complex, str, bytes, type(None), Fraction, PurePath, torch.dtype)
_DEEPEST = 8
"""How far values are followed that hold others, which may hold themselves."""


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

    Of a module that is in no package it is its file, with what that imports from its own folder, and of a package all
    of its modules, for parts share some. Of what a script or a notebook defines it is that class or function: what
    stands beside it is no part. One that was made in a function is told from others of its name by what it has from
    there.

    :param used: What makes the parts that are used.
    :return: By the module's name or the package's; in a script by its own.
    """
    found: dict[str, PartCode] = {}
    for one in used:
        if is_ours(one) or _top_of(one) in sys.stdlib_module_names:
            continue
        top, qualname = _top_of(one), str(getattr(one, "__qualname__", ""))
        name = qualname or top if top == "__main__" else top
        if name not in found:
            code = _written(one) if top == "__main__" else _imported(top)
            found |= {} if code is None else {name: code}
        if "<locals>" in qualname:
            key, around = f"{one.__module__}:{qualname}", _around(one)
            others = found[key].sha256 if key in found else ""  # one function may make several parts of a run
            found[key] = PartCode(f"what {qualname} has from the function that made it", _sum_of_text(others + around))
    return found


def is_ours(one: object) -> bool:
    """Say whether a class or function, or a part's class, comes with ecoflap."""
    return _top_of(one) == "ecoflap"


def _top_of(one: object) -> str:
    return str(getattr(one, "__module__", "")).partition(".")[0]


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
    if not file or not Path(file).is_file():
        return None
    beside = _imported_beside(Path(file))
    return PartCode(file, _sum_of({Path(file).name: Path(file), **beside}) if beside else sha256_of(Path(file)))


def _imported_beside(file: Path) -> dict[str, Path]:
    """Find the code that a module in no package imports from its own folder, and what that imports from there.

    Beside what is installed lie libraries, which have versions.
    """
    if _INSTALLED.intersection(file.parts):
        return {}
    found: dict[str, Path] = {}
    left = [file]
    while left:
        for name in _names_imported(left.pop()):
            package = file.parent / name  # of data alone, as `datasets` may be, where it lacks __init__.py
            inside = _code_in(package) if (package / "__init__.py").is_file() else ()
            whole = [package.with_name(f"{name}.py"), *inside]
            new = [one for one in whole if one.is_file() and one != file and one not in found.values()]
            found |= {one.relative_to(file.parent).as_posix(): one for one in new}
            left += new
    return found


def _names_imported(file: Path) -> set[str]:
    """Give the first part of each name that a file of Python imports by a statement; none of what cannot be read."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    statements = list(ast.walk(tree))
    plain = {alias.name for one in statements if isinstance(one, ast.Import) for alias in one.names}
    of_names = {one.module or "" for one in statements if isinstance(one, ast.ImportFrom) and not one.level}
    return {name.partition(".")[0] for name in plain | of_names} - {""}


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
    """Give what a script or a notebook says of a class or function; of what was typed and cannot be read, what it runs.

    Of a class in a notebook Python finds no file, and its functions are what there is to read.
    """
    inside = _functions_of(one) if isinstance(one, type) else []
    for parts in ([one], inside) if _is_of_its_file(one, inside) else (inside,):
        try:
            text = "".join(map(inspect.getsource, parts))
            file = inspect.getsourcefile(parts[0]) if parts else None
        except (OSError, TypeError):
            continue
        if text:
            return PartCode(file or "a script", _sum_of_text(text))
    run = "".join(map(_run_by, _functions_of(one)))
    return PartCode("what was typed", _sum_of_text(run)) if run else None


def _is_of_its_file(one: Callable[..., Any], inside: Sequence[FunctionType]) -> bool:
    """Say whether the file that Python names for a class has any of its functions.

    From 3.13 on a class that was typed is looked for, by its line, in the script that ran before it.
    """
    with suppress(OSError, TypeError):
        file = inspect.getsourcefile(one)
        return not inside or any(inspect.unwrap(function).__code__.co_filename == file for function in inside)
    return True


def _functions_of(one: object) -> list[FunctionType]:
    """Give the functions that a class defines, those of its properties too; of a function itself."""
    values = vars(one).values() if isinstance(one, type) else [one]
    found = (getattr(value, "fget", None) or getattr(value, "__func__", value) for value in values)
    written = (function for function in found if inspect.isfunction(function))
    return [function for function in written if function.__code__.co_filename != "<string>"]  # which dataclasses makes


def _around(one: Callable[..., Any]) -> str:
    """Write out what a class or function has from the function around it: names, and attributes of a class."""
    attributes = vars(one).items() if isinstance(one, type) else ()
    own = {name: _told(value) for name, value in attributes if not (name.startswith("__") or callable(value))}
    taken = {line for function in _functions_of(one) for line in _cells_of(function, _DEEPEST)}
    return "\n".join([*(f"{name}: {told}" for name, told in sorted(own.items())), *sorted(taken)])


def _cells_of(function: FunctionType, depth: int) -> Iterator[str]:
    """Write out what each name of the function around stands for that a function uses."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":
            with suppress(ValueError):  # it is set later
                yield f"{name} = {_told(cell.cell_contents, depth)}"


def _told(value: Any, depth: int = _DEEPEST) -> str:
    """Write out a value such that each process writes the same; of what has no lasting text its type alone."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth:
        if isinstance(value, tuple | list):
            return f"[{', '.join(_told(one, depth - 1) for one in value)}]"
        if isinstance(value, set | frozenset):  # whose order is another in each process
            return f"{{{', '.join(sorted(_told(one, depth - 1) for one in value))}}}"
        if isinstance(value, dict):
            pairs = (f"{_told(name, depth - 1)}: {_told(one, depth - 1)}" for name, one in value.items())
            return f"{{{', '.join(pairs)}}}"
        if inspect.isfunction(value):
            return _run_by(value, depth - 1)
        if isinstance(value, CodeType):
            names = f"{value.co_names} {value.co_varnames}"
            return f"{value.co_code.hex()} {names} {_told(value.co_consts, depth - 1)}"
    return f"a {type(value).__qualname__}"


def _run_by(function: FunctionType, depth: int = _DEEPEST) -> str:
    """Write out what Python runs as a function, and nothing of where it stands."""
    parts = (function.__defaults__, function.__kwdefaults__, function.__code__)
    return " ".join([*(_told(one, depth) for one in parts), *(_cells_of(function, depth) if depth else ())])


def _sum_of_text(text: str) -> str:
    return sha256(text.encode(errors="backslashreplace")).hexdigest()
