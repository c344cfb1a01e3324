"""Reads registry files: which plugins load and in which order, what is off, other names, site defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RegistryError, unknown
from ecoflap.core.registry.parameters import KINDS
from ecoflap.core.text.problems import Problems
from ecoflap.core.text.strict_yaml import Document, KeyPath, Place, named, read_yaml

_KEYS = ("version", "plugins", "disable", "aliases", "defaults")


@dataclass(frozen=True)
class Setting:
    """Something a registry file says, and where."""

    value: Any
    place: Place


@dataclass
class Settings:
    """What the registry files say together.

    :param plugins: ``module`` or ``module:attribute`` by name, in the order they load.
    :param shipped: Names of the plugins of the file that ships.
    :param disable: Plugins never loaded.
    :param aliases: The real name by kind and other name.
    :param defaults: Parameter values by kind, name and parameter.
    """

    plugins: dict[str, Setting] = field(default_factory=dict)
    shipped: frozenset[str] = frozenset()
    disable: dict[str, Setting] = field(default_factory=dict)
    aliases: dict[str, dict[str, Setting]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    defaults: dict[str, dict[str, dict[str, Setting]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def extend(self, document: Document) -> None:
        """Add what another file says; all that is wrong with it is raised at once."""
        problems = Problems(document)
        problems.add_unknown_keys((), document.value, _KEYS)
        if document.value.get("version") != 1:
            problems.add(("version",), f"should be 1, not {named(document.value.get('version'))}.")
        self._extend_plugins(document, problems)
        self._extend_disabled(document, problems)
        self._extend_aliases(document, problems)
        self._extend_defaults(document, problems)
        problems.raise_if_any(RegistryError)

    def _extend_plugins(self, document: Document, problems: Problems) -> None:
        for name, target in _mapping(document.value.get("plugins"), ("plugins",), problems).items():
            path = ("plugins", name)
            if not isinstance(target, str) or not target:
                problems.add(path, f"should be a module, or module:Class, not {named(target)}.")
            elif name in self.plugins:
                problems.add(
                    path, f"{self.plugins[name].place} names a plugin so already. Choose another name.", key=True
                )
            else:
                self.plugins[str(name)] = Setting(target, document.where(path))

    def _extend_disabled(self, document: Document, problems: Problems) -> None:
        disable = document.value.get("disable") or []
        if not isinstance(disable, list):
            problems.add(("disable",), f"should be a list of plugins, not {named(disable)}.")
            return
        for index, name in enumerate(disable):
            self.disable[str(name)] = Setting(name, document.where(("disable", index)))

    def _extend_aliases(self, document: Document, problems: Problems) -> None:
        for kind, path, of_kind in _by_kind(document, "aliases", problems):
            for alias, name in of_kind.items():
                self.aliases[kind][str(alias)] = Setting(name, document.where((*path, alias)))

    def _extend_defaults(self, document: Document, problems: Problems) -> None:
        for kind, path, of_kind in _by_kind(document, "defaults", problems):
            for name in of_kind:
                values = _mapping(of_kind[name], (*path, name), problems)
                places = {key: Setting(value, document.where((*path, name, key))) for key, value in values.items()}
                self.defaults[kind].setdefault(str(name), {}).update(places)


def _mapping(value: Any, path: KeyPath, problems: Problems) -> Mapping[Any, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    problems.add(path, f"should be a mapping, not {named(value)}.")
    return {}


def _by_kind(document: Document, key: str, problems: Problems) -> list[tuple[str, KeyPath, Mapping[Any, Any]]]:
    found = []
    for kind, value in _mapping(document.value.get(key), (key,), problems).items():
        if kind in KINDS:
            found.append((kind, (key, kind), _mapping(value, (key, kind), problems)))
        else:
            problems.add((key, kind), unknown("kind of part", str(kind), tuple(KINDS)), key=True)
    return found


def read_settings(path: Path | str | None, base: Path | None) -> Settings:
    """The shipped file, extended by a user's own.

    :param path: The user's file; by default the one ``ECOFLAP_REGISTRY`` names, if any.
    :param base: Read instead of the shipped file.
    """
    settings = Settings()
    shipped = base or files("ecoflap").joinpath("registry.yaml")
    settings.extend(read_yaml(shipped.read_text(encoding="utf-8"), str(shipped), RegistryError))
    settings.shipped = frozenset(settings.plugins)
    own = path or os.environ.get("ECOFLAP_REGISTRY")
    if own:
        settings.extend(_read(Path(own), "" if path else " (named by ECOFLAP_REGISTRY)"))
    return settings


def _read(path: Path, named_by: str) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"registry file {path}{named_by} cannot be read: {error}") from error
    return read_yaml(text, path, RegistryError)
