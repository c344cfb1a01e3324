"""Loads recipes: reads the YAML, applies ``--set``, and checks the whole of it before anything else is loaded."""

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RecipeError, cut, nearest
from ecoflap.core.recipe.overrides import Assignment, override
from ecoflap.core.recipe.read_keys import KeyReader
from ecoflap.core.recipe.read_recipe import read_recipe
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.problems import Problems, RecipeProblems
from ecoflap.core.text.strict_yaml import Document, Place, described, parse_yaml, read_small_text


def load_recipe(
    path: Path | str, *, set_: Sequence[str | Assignment] = (), registry: Registry, in_memory: bool = False
) -> Recipe:
    """Read and check the recipe of a file.

    :param set_: Assignments such as ``prune.use=sparsegpt``, applied in order before checking.
    :param in_memory: The model is given in memory, so ``model:`` may be missing.
    :raises RecipeError: With every problem, each with its place.
    """
    path = Path(path)
    try:
        text = read_small_text(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    return parse_recipe(text, set_=set_, registry=registry, file=path, in_memory=in_memory)


def parse_recipe(
    source: Mapping[str, Any] | str,
    *,
    set_: Sequence[str | Assignment] = (),
    registry: Registry,
    file: Path | str = "recipe",
    in_memory: bool = False,
) -> Recipe:
    """Check the recipe of a YAML text, or of a mapping, whose parts may then be part objects.

    :param file: Named in messages; paths in the recipe are relative to its folder.
    """
    folder = Path(file).parent.absolute()
    if isinstance(source, str):
        document, problems = parse_yaml(source, Place(str(file), 1, 1, folder))
    else:
        document, problems = Document(dict(source), Place(str(file), folder=folder)), []
    if not isinstance(document.value, dict):
        what = "is empty" if document.value is None else f"is {described(document.value)}"
        whole = f"{document.start}: the recipe {what}; a mapping is wanted, beginning with 'version: 1'."
        raise RecipeProblems(str(file), *(problems or [whole]))
    document, in_sets = override(document, set_)
    reader = KeyReader(document, Problems(document, [*problems, *in_sets]), registry)
    return read_recipe(reader, in_memory=in_memory)


def find_recipe(name: str) -> Path:
    """Find a recipe file, or one that ships by its name: ``quickstart`` or ``quickstart.yaml``.

    :raises RecipeError: Where there is neither.
    """
    name = os.path.expanduser(name)
    if os.path.isfile(name):  # which, unlike a Path, no text makes raise
        return Path(name)
    folder = Path(str(files("ecoflap").joinpath("recipes")))
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    found = shipped.get(name.removesuffix(".yaml"))
    if found is None and os.path.isdir(name) and (inside := sorted(Path(name).glob("*.yaml"))):
        named = " or ".join(map(str, inside[:3]))
        raise RecipeError(f"{cut(name)} is a folder: name a recipe in it, such as {named}.")
    if found is None and os.path.exists(name) and not os.path.isdir(name):
        raise RecipeError(f"{cut(name)} is no file, as a pipe is none: save the recipe in one, and name that.")
    if found is None:
        near = nearest(name.removesuffix(".yaml"), shipped)  # which of so many says more than all of them
        known = near or f" Known: {_by_folder(shipped)}."
        here = "" if os.path.isabs(name) else f" Files are looked for in {os.getcwd()}."
        said = cut(name) or "an empty name"
        raise RecipeError(f"{said} is no file, and there is no shipped recipe named {cut(name)!r}.{known}{here}")
    return found


def _by_folder(names: Iterable[str]) -> str:
    """List recipes with those of one folder together: ``language/{balanced, best, fast}, quickstart``."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        folders.setdefault(folder and f"{folder}/", []).append(last)
    listed = (f"{folder}{{{', '.join(inside)}}}" if folder else ", ".join(inside) for folder, inside in folders.items())
    return ", ".join(listed)
