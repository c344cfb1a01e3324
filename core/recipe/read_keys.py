"""Reads the keys of a recipe as ``schema.py`` declares them: parts, paths, lists, and mappings of keys in them.

What is read is not yet typed: pydantic does that at the end, on the whole recipe. Every method notes what is wrong and
goes on, so that all problems are told at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from ecoflap.core.disk.paths import PathError, recordable
from ecoflap.core.recipe.keys import Key, Keys, is_mapping, key_of, type_of
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.read_part import PartReader
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.problems import Problems
from ecoflap.core.text.strict_yaml import Document, KeyPath, described

FAILED = PartSpec("", "", {}, dict)
"""Stands in for a part with problems, so that the rest can be checked in the same go."""


class KeyReader:
    """Reads one document.

    :param document: What is written, and where each value of it stands.
    :param problems: Collects what is wrong with it.
    """

    def __init__(self, document: Document, problems: Problems, registry: Registry) -> None:
        self.document, self.problems = document, problems
        self.parts = PartReader(registry, problems)

    def mapping(self, keys: type[Keys], written: Any, path: KeyPath) -> dict[str, Any]:
        """Read the keys of a mapping; those it does not set are left to their defaults."""
        if keys.bare and isinstance(written, str):
            written = {keys.bare: written}
        inside: dict[str, Any] = {}
        if keys.inline:
            part, written = split_inline(keys, written)
            fill = {name: self._of_the_recipe(name) for name in keys.fills}
            kind = key_of(keys.model_fields[keys.inline]).kind
            beside = set(keys.model_fields) - {keys.inline}
            inside[keys.inline] = self.parts.check(kind, part, path, fill, beside) or FAILED
        else:
            self.problems.add_unknown_keys(path, written, keys.model_fields)
        return inside | {
            name: self.value(field, written[name], (*path, name))
            for name, field in keys.model_fields.items()
            if name != keys.inline and written.get(name) is not None
        }

    def _of_the_recipe(self, name: str) -> Any:
        """Give what a key of the recipe itself is set to, or its default."""
        written = self.document.value.get(name)
        return Recipe.model_fields[name].default if written is None else written

    def value(self, field: FieldInfo, written: Any, path: KeyPath) -> Any:
        """Read what one key holds."""
        key, wanted = key_of(field), type_of(field)
        if get_origin(wanted) is tuple:
            items = [self._item(key, get_args(wanted)[0], item, at) for item, at in _items(written, path)]
            return tuple(item for item in items if item is not None)
        if key.kind:
            return self.part(key.kind, written, path)
        if is_mapping(wanted):
            return self.mapping(wanted, written, path) if _holds_keys(wanted, written) else written
        return self.path(written, path) if wanted is Path and isinstance(written, str) else written

    def part(self, kind: str, written: Any, path: KeyPath) -> PartSpec:
        """Read a part; :data:`FAILED` where something is wrong with it."""
        return self.parts.check(kind, written, path) or FAILED

    def path(self, written: str | Path, path: KeyPath) -> Path:
        """Make a path absolute, from the folder of the file that wrote it; that folder where it is no path at all."""
        folder = self.document.where(path).folder
        try:
            return recordable(written, folder)
        except PathError as error:
            self.problems.add(path, f"{error}.")
            return folder

    def _item(self, key: Key, wanted: Any, written: Any, path: KeyPath) -> Any:
        """Read one item of a list; None, and a problem, where it is of another type."""
        if key.kind:
            return self.part(key.kind, written, path)
        if not isinstance(written, (str, Path)):
            self.problems.add(path, f"should be {key.each}, not {described(written)}.")
            return None
        return self.path(written, path) if wanted is Path else str(written)


def split_inline(keys: type[Keys], written: Any) -> tuple[Any, Mapping[str, Any]]:
    """Split a part, as written, from the engine's keys that stand beside its parameters."""
    if not isinstance(written, dict):
        return written, {}
    engine = set(keys.model_fields) - {keys.inline}
    own = {key: value for key, value in written.items() if key not in engine}
    return own, {key: value for key, value in written.items() if key in engine}


def _holds_keys(keys: type[Keys], written: Any) -> bool:
    """Say whether keys can be read of it: it is a mapping, or what may stand in place of one."""
    return isinstance(written, dict) or bool(keys.inline) or (bool(keys.bare) and isinstance(written, str))


def _items(written: Any, path: KeyPath) -> list[tuple[Any, KeyPath]]:
    """Give what a list holds, each with its place; a single value is a list of itself."""
    if isinstance(written, (list, tuple)):
        return [(item, (*path, index)) for index, item in enumerate(written)]
    return [(written, path)]
