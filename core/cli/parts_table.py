"""Make the tables that ``ecoflap list`` prints."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from inspect import getdoc
from typing import Any

from ecoflap.core.cli.tables import Section
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.registry.parameters import parameters_of
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.columns import left


def parts_table(registry: Registry, kind: str | None) -> list[Section]:
    """Return the registered parts of one kind, or of all where it is None."""
    return [
        Section(f"{name}s", left(name, "parameters", "what it does", "from"), list(_parts(registry, name)))
        for name in ([kind] if kind else KINDS)
    ]


def _parts(registry: Registry, kind: str) -> Iterator[tuple[str, str, str, str]]:
    for name in registry.names(kind):
        factory = registry.find(kind, name)
        yield name, _parameters(factory), _summary(factory), str(registry.origin(kind, name))


def _summary(factory: Callable[..., Any]) -> str:
    """Give the first paragraph of what a factory says of itself; where it is silent, Python says its signature."""
    said = getdoc(factory) or ""
    is_signature = is_dataclass(factory) and said.startswith(f"{getattr(factory, '__name__', '')}(")
    return "" if is_signature else said.split("\n\n")[0].replace("\n", " ")


def _parameters(factory: Callable[..., Any]) -> str:
    """Write a factory's parameters with their defaults; nothing of one whose code tells no parameters."""
    try:
        found, _ = parameters_of(factory)
    except TypeError:  # as of one that is written in C
        return ""
    return ", ".join(p.name if p.required else f"{p.name}={_written(p.default)}" for p in found.values())


def _written(default: Any) -> str:
    """Write a default as a recipe does, where it is one of an enumeration."""
    return repr(default.value if isinstance(default, Enum) else default)
