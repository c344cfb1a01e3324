"""Refuse to begin a run anew in a folder that its own recipe reads from, which would be deleted first."""

from collections.abc import Iterator
from pathlib import Path

from ecoflap.core.errors import RunError
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.registry.nested_values import leaves


def refuse_deleting_inputs(prepared: Prepared, target: Path) -> None:
    """Refuse to empty a folder that the recipe reads from.

    :param target: The run's folder.
    :raises RunError: Which names what lies there.
    """
    inside = [f"{where}: {path}" for where, path in _read(prepared) if path.resolve().is_relative_to(target.resolve())]
    if inside:
        raise RunError(
            f"{target} is to be begun anew, which deletes all that is in it, and the recipe reads from there "
            f"({'; '.join(dict.fromkeys(inside))}). Name another folder with --folder, or move these out of it"
        )


def _read(prepared: Prepared) -> Iterator[tuple[str, Path]]:
    """Yield what a recipe reads, by its place in it."""
    if prepared.source.path is not None:
        yield "model", prepared.source.path
    yield from (("reuse", path) for path in prepared.recipe.reuse)
    for where, spec in prepared.recipe.specs():
        for value in spec.parameters.values():
            yield from ((where, path) for path in leaves(value) if isinstance(path, Path))
