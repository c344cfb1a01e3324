"""Do ``ecoflap densify``: write a packed file as an ordinary one, by whichever exporter packs files of its kind."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import ExporterOptions
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.registry.registry import Registry

Densify: TypeAlias = Callable[[Path, Path], Path]
"""Writes a packed file, the first, as an ordinary one, the second."""


def densify(file: Path, target: Path, registry: Registry, *, overwrite: bool = False) -> Path:
    """Write a packed file dense, whole or not at all.

    :param overwrite: Replace a target that is there already.
    :return: The target.
    :raises EcoflapError: Where no exporter reads such files, the file is broken, or the target is the file itself or
        there already.
    """
    if file.is_dir():
        raise ModelError(f"{file} is a folder: {_packed_in(file, _by_ending(registry))}")
    if not file.is_file():
        raise ModelError(f"{file} is not there")
    if target.resolve() == file.resolve():
        raise ModelError(f"{target} is the packed file itself; name another")
    if os.path.lexists(target) and not overwrite:  # also a link to a file that is gone, which would be lost
        raise ModelError(f"{target} is there already; name another, or say --overwrite to have it replaced")
    known = _by_ending(registry)
    others = {Path(f"any{ending}").suffix for ending in known} - {file.suffix}
    if target.suffix in others and file.name.endswith(tuple(known)):
        raise ModelError(f"{target} would be a {file.suffix} file by another kind's name; name one with {file.suffix}")
    for ending in sorted(known, key=len, reverse=True):
        if file.name.endswith(ending):
            name, write_dense = known[ending]
            with blaming(f"the exporter {name}, writing {file.name} dense,"):
                return write_dense(file, target)
    raise FormatError(f"{file}: no exporter packs such files. Known endings: {', '.join(sorted(known))}")


def _packed_in(folder: Path, endings: Iterable[str]) -> str:
    found = sorted(path for path in folder.iterdir() if path.name.endswith(tuple(endings)))
    if found:
        return f"name the packed file in it, {' or '.join(map(str, found))}"
    return f"name a packed file. Known endings: {', '.join(sorted(endings))}"


def _by_ending(registry: Registry) -> dict[str, tuple[str, Densify]]:
    """Give the exporters that make files dense, each with its name and its way, by the endings of what they read.

    They are not built, for they may have parameters that must be given: the options are those of the factory itself.
    """
    found: dict[str, tuple[str, Densify]] = {}
    for name in registry.names("exporter"):
        options = options_of(ExporterOptions, registry.find("exporter", name))
        if options.densify is not None:
            found |= dict.fromkeys(options.densifies, (name, options.densify))
    return found
