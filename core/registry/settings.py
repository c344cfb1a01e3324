"""Read registry files: which plugins load and in which order, what is off, other names, site defaults."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.errors import RegistryError, unknown
from ecoflap.core.text.problems import Problems
from ecoflap.core.text.strict_yaml import Document, KeyPath, Place, described, read_small_text, read_yaml

_KEYS = ("version", "plugins", "disable", "aliases", "defaults")


@dataclass(frozen=True)
class PlacedValue:
    """Holds a value of a registry file, and where it is written."""

    value: Any
    place: Place


Placed: TypeAlias = Mapping[str, PlacedValue]
"""Values of a registry file, by the names that they are for."""


@dataclass(frozen=True)
class Settings:
    """Holds what registry files say together.

    :param plugins: ``module`` or ``module:attribute`` by the plugin's name, in the order they load.
    :param shipped: Names of the plugins of the file that ships.
    :param disable: Plugins that are never loaded.
    :param aliases: The real name, by kind and other name.
    :param defaults: Values of parameters, by kind, part and parameter.
    """

    plugins: Placed = field(default_factory=dict)
    shipped: frozenset[str] = frozenset()
    disable: Placed = field(default_factory=dict)
    aliases: Mapping[str, Placed] = field(default_factory=dict)
    defaults: Mapping[str, Mapping[str, Placed]] = field(default_factory=dict)


def read_settings(path: Path | str | None, base: Path | None) -> Settings:
    """Read the file that ships, and a user's own, which extends it.

    :param path: The user's file; by default the one that ``ECOFLAP_REGISTRY`` names, if any.
    :param base: Read instead of the file that ships.
    :raises RegistryError: With all that is wrong with one of the files.
    """
    shipped = base or files("ecoflap").joinpath("registry.yaml")
    document = read_yaml(shipped.read_text(encoding="utf-8"), str(shipped), RegistryError)
    settings = _extended(Settings(), document)
    settings = replace(settings, shipped=frozenset(settings.plugins))
    own = path or os.environ.get("ECOFLAP_REGISTRY")
    if not own:
        return settings
    return _extended(settings, _read(Path(own), "" if path else " (named by ECOFLAP_REGISTRY)"))


def _read(path: Path, named_by: str) -> Document:
    try:
        text = read_small_text(path)
    except (OSError, ValueError) as error:
        raise RegistryError(f"registry file {path}{named_by} cannot be read: {error}") from error
    return read_yaml(text, path, RegistryError)


def _extended(settings: Settings, document: Document) -> Settings:
    """Add what another file says.

    :raises RegistryError: With all that is wrong with it.
    """
    problems = Problems(document)
    problems.add_unknown_keys((), document.value, _KEYS)
    version = document.value.get("version")
    if version != 1:
        problems.add(("version",), f"should be 1, not {described(version)}.")
    plugins = {**settings.plugins, **_plugins(document, settings.plugins, problems)}
    disable = {**settings.disable, **_disabled(document, problems)}
    aliases = _merged(settings.aliases, _aliases(document, problems))
    defaults = _merged(settings.defaults, _defaults(document, settings.defaults, problems))
    problems.raise_if_any(RegistryError)
    return Settings(plugins, settings.shipped, disable, aliases, defaults)


def _plugins(document: Document, before: Placed, problems: Problems) -> Placed:
    found = {}
    for name, target in _mapping(document.value.get("plugins"), ("plugins",), problems).items():
        path = ("plugins", name)
        if not isinstance(target, str) or not target:
            problems.add(path, f"should be a module, or module:Class, not {described(target)}.")
        elif str(name) in before:
            problems.add(path, f"{before[str(name)].place} names a plugin so already. Choose another name.", key=True)
        else:
            found[str(name)] = PlacedValue(target, document.where(path))
    return found


def _disabled(document: Document, problems: Problems) -> Placed:
    names = document.value.get("disable")
    if names is None:
        return {}
    if not isinstance(names, list):
        problems.add(("disable",), f"should be a list of plugins, not {described(names)}.")
        return {}
    return {str(name): PlacedValue(name, document.where(("disable", index))) for index, name in enumerate(names)}


def _aliases(document: Document, problems: Problems) -> Mapping[str, Placed]:
    found: dict[str, dict[str, PlacedValue]] = {}
    for kind, path, of_kind in _by_kind(document, "aliases", problems):
        for alias, name in of_kind.items():
            if ":" in str(alias):
                problems.add((*path, alias), "should be a name without ':', which import paths have.", key=True)
            elif isinstance(name, str):
                found.setdefault(kind, {})[str(alias)] = PlacedValue(name, document.where((*path, alias)))
            else:
                problems.add((*path, alias), f"should be the name of a {kind}, not {described(name)}.")
    return found


def _defaults(
    document: Document, before: Mapping[str, Mapping[str, Placed]], problems: Problems
) -> Mapping[str, Mapping[str, Placed]]:
    """Give the defaults of a file by kind and part, each part's together with those that it had before."""
    found: dict[str, dict[str, Placed]] = {}
    for kind, path, of_kind in _by_kind(document, "defaults", problems):
        for name, written in of_kind.items():
            values = _mapping(written, (*path, name), problems)
            placed = {key: PlacedValue(value, document.where((*path, name, key))) for key, value in values.items()}
            earlier = before.get(kind, {}).get(str(name), {})
            found.setdefault(kind, {})[str(name)] = {**earlier, **placed}
    return found


def _merged(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge mappings of mappings, the inner ones key by key."""
    return {kind: {**before.get(kind, {}), **after.get(kind, {})} for kind in {**before, **after}}


def _by_kind(document: Document, key: str, problems: Problems) -> Iterator[tuple[str, KeyPath, Mapping[Any, Any]]]:
    """Yield each kind of part that a key of the file has something for, with the path of that and its mapping."""
    for kind, value in _mapping(document.value.get(key), (key,), problems).items():
        if kind in KINDS:
            yield kind, (key, kind), _mapping(value, (key, kind), problems)
        else:
            problems.add((key, kind), unknown("kind of part", str(kind), tuple(KINDS)), key=True)


def _mapping(value: Any, path: KeyPath, problems: Problems) -> Mapping[Any, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    problems.add(path, f"should be a mapping, not {described(value)}.")
    return {}
