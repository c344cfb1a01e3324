"""How a recipe's key is declared: its type, its default, what it is, and what the engine has to know of it besides.

A key is one annotated field of a class in ``schema.py``. Reading it, writing it out, walking its parts, ``--set``, the
page docs/recipe.md and the rules of what may change in a run folder all follow from that one declaration.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from ecoflap.core.recipe.part_spec import PartSpec


@dataclass(frozen=True)
class Key:
    """What the engine knows of a key beside its type; it stands among the annotations of the field.

    :param kind: The kind of part that the key holds, or holds a list of.
    :param may_change: Whether two runs in one folder may differ in it: what precedes them is taken over.
    :param scores: Whether scores depend on it.
    :param method: Whether runs that differ in it are runs of different methods when they are compared.
    :param each: What each item of a list of texts or paths is, for messages.
    """

    kind: str = ""
    may_change: bool = False
    scores: bool = False
    method: bool = True
    each: str = ""


PLAIN = Key()


class Keys(BaseModel):
    """A mapping of keys in a recipe, frozen once it is checked.

    :cvar bare: The key that a text in place of the mapping stands for: ``model: ./folder`` is its ``source``.
    :cvar inline: The key whose part is written in the mapping itself, its parameters beside the other keys.
    :cvar fills: Keys of the recipe that the inline part's parameters of the same names take where it sets none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    bare: ClassVar[str] = ""
    inline: ClassVar[str] = ""
    fills: ClassVar[tuple[str, ...]] = ()

    def plain(self) -> dict[str, Any]:
        """Write the keys as a recipe does, without those that are not set."""
        inside = getattr(self, self.inline).plain() if self.inline else {}
        written = {name: _plain(getattr(self, name)) for name in type(self).model_fields if name != self.inline}
        return {**inside, **set_keys(written)}

    def specs(self, where: str = "") -> Iterator[tuple[str, PartSpec]]:
        """Yield every part of the keys with its dotted place, those inside other parts too."""
        for name in type(self).model_fields:
            inside = where if name == self.inline else f"{where}.{name}" if where else name
            yield from _specs(getattr(self, name), inside)


def key_of(field: FieldInfo) -> Key:
    """Give what a field declares of its key."""
    return next((one for one in field.metadata if isinstance(one, Key)), PLAIN)


def type_of(field: FieldInfo) -> Any:
    """Give the type of a key, without the None of one that may be missing."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        left = [branch for branch in get_args(annotation) if branch is not NoneType]
        return left[0] if len(left) == 1 else annotation
    return annotation


def is_mapping(wanted: Any) -> TypeGuard[type[Keys]]:
    """Say whether the type of a key is a mapping of keys."""
    return isinstance(wanted, type) and issubclass(wanted, Keys)


def list_keys(keys: type[Keys]) -> list[str]:
    """Name the keys that hold a list."""
    return [name for name, field in keys.model_fields.items() if get_origin(type_of(field)) is tuple]


def bare_keys(keys: type[Keys]) -> dict[str, str]:
    """Give the key that a text in place of a mapping stands for, by the key under which that mapping is written."""
    mappings = {name: type_of(field) for name, field in keys.model_fields.items()}
    return {name: wanted.bare for name, wanted in mappings.items() if is_mapping(wanted) and wanted.bare}


def engine_keys(keys: type[Keys]) -> dict[str, tuple[str, ...]]:
    """Give the engine's keys that stand beside a part's parameters, by the key under which that part is written."""
    found: dict[str, tuple[str, ...]] = {}
    for name, field in keys.model_fields.items():
        wanted = type_of(field)
        if is_mapping(wanted):
            found |= engine_keys(wanted)
            if wanted.inline:
                found[name] = tuple(key for key in wanted.model_fields if key != wanted.inline)
    return found


def set_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not set."""
    return {key: value for key, value in keys.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (Keys, PartSpec)):
        return value.plain()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _specs(value: Any, where: str) -> Iterator[tuple[str, PartSpec]]:
    if isinstance(value, PartSpec):
        yield from value.with_inner(where)
    elif isinstance(value, Keys):
        yield from value.specs(where)
    elif isinstance(value, (tuple, Mapping)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            yield from _specs(inner, f"{where}.{name}")
