"""``ecoflap densify``: a packed file as an ordinary one, written by whichever exporter packs files of its kind."""

from pathlib import Path
from typing import Any

from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.registry.registry import Registry


def densify(file: Path, target: Path, registry: Registry) -> Path:
    """Write a packed file dense, whole or not at all.

    An exporter says by ``densifies`` which endings its packed files have, and by ``densify(file, target)`` how.

    :raises EcoflapError: Where no exporter knows the file, it is broken, or the target is the file itself.
    """
    if not file.is_file():
        raise ModelError(f"{file} is not there")
    if target.resolve() == file.resolve():
        raise ModelError(f"{target} is the packed file itself; name another")
    factories: list[Any] = [registry.find("exporter", name) for name in registry.names("exporter")]
    known = {ending: factory for factory in factories for ending in getattr(factory, "densifies", ())}
    for ending in sorted(known, key=len, reverse=True):
        if file.name.endswith(ending):
            written: Path = known[ending].densify(file, target)
            return written
    raise FormatError(f"{file}: no exporter packs such files. Known endings: {', '.join(sorted(known))}")
