"""Find models among the files of installed packages, of which nothing is run."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from ecoflap.core.errors import ModelError, nearest


def package_folder(package: str) -> Path:
    """Find the folder of an installed package without importing it.

    :raises ModelError: Where no such package is installed.
    """
    spec = None
    with suppress(ValueError):  # of __main__
        # A dotted name would import its parents.
        spec = find_spec(package) if package.isidentifier() else None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if places:
        return Path(places[0])
    hint = nearest(package, packages_distributions())
    raise ModelError(f"no package named {package!r} is installed here.{hint} Install it with pip, then run this again.")


def models_below(folder: Path) -> Iterator[Path]:
    """Yield the folders with a config.json that are in no other such folder, and the GGUF files outside them."""
    outermost: list[Path] = []
    for config in sorted(folder.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        if not any(other in config.parents for other in outermost):
            outermost.append(config.parent)
    yield from outermost
    yield from (file for file in folder.rglob("*.gguf") if not any(other in file.parents for other in outermost))
