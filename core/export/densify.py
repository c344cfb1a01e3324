"""``ecoflap densify``: writes a packed file as an ordinary one, by whichever exporter packs files of its kind."""

from pathlib import Path
from typing import Any

from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.registry.registry import Registry


def densify(file: Path, target: Path, registry: Registry) -> Path:
    """Write a packed file dense, whole or not at all.

    :return: The target.
    :raises EcoflapError: Where no exporter reads such files, the file is broken, or the target is the file itself.
    """
    if not file.is_file():
        raise ModelError(f"{file} is not there")
    if target.resolve() == file.resolve():
        raise ModelError(f"{target} is the packed file itself; name another")
    known = _by_ending(registry)
    for ending in sorted(known, key=len, reverse=True):
        if file.name.endswith(ending):
            written: Path = known[ending].densify(file, target)
            return written
    raise FormatError(f"{file}: no exporter packs such files. Known endings: {', '.join(sorted(known))}")


def _by_ending(registry: Registry) -> dict[str, Any]:
    """The factories of exporters that make files dense, by the endings of what they read.

    They are not built, for they may have parameters that must be given: ``densify`` is asked of the factory itself.
    """
    factories: list[Any] = [registry.find("exporter", name) for name in registry.names("exporter")]
    able = [factory for factory in factories if getattr(factory, "densify", None) is not None]
    return {ending: factory for factory in able for ending in getattr(factory, "densifies", ())}
