"""Find parts by name: what plugins offer, under the names and with the defaults that registry files give."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from ecoflap.core.contracts.blame import sentence_and_place_of, sentence_of
from ecoflap.core.contracts.conformance import factory_problems
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.errors import RegistryError, nearest, unknown
from ecoflap.core.registry.loading import Plugin, import_target, register, wanted_plugins
from ecoflap.core.registry.parameters import Parameter, code_name, parameters_of
from ecoflap.core.registry.settings import Placed, Settings, read_settings


@dataclass(frozen=True)
class Origin:
    """Says where a part comes from.

    :param code: ``module:Class``.
    :param source: A distribution and its version, a registry file, or ``built-in``.
    """

    code: str
    source: str

    def __str__(self) -> str:
        return f"{self.code} ({self.source})"


@dataclass(frozen=True)
class Offer:
    """Holds a factory that a plugin offers under a name."""

    factory: Callable[..., Any]
    plugin: Plugin


ON_TRUST = (
    "code runs here only where it is asked for. If you trust it, say --allow-code, or allow_code=True from Python; or "
    "install it as a plugin (docs/plugins.md)."
)
"""Ends the sentence that refuses code which is not the user's own: why, and what to do."""


@dataclass(frozen=True, eq=False)
class Registry:
    """Finds the parts that a recipe can name. It is made by :func:`load_registry`.

    :param offers: What plugins offer, by kind and name.
    :param aliases: The real name, by kind and other name.
    :param defaults: Site defaults by kind, name and parameter, each with the place where it is written.
    :param allow_code: Whether import paths are followed. Whoever wrote a recipe need not be the user, so by default
        they are refused before anything is imported.
    """

    offers: Mapping[str, Mapping[str, Offer]]
    aliases: Mapping[str, Mapping[str, str]]
    defaults: Mapping[str, Mapping[str, Placed]]
    _observers: tuple[tuple[str, Callable[[Any], None]], ...] = field(default=(), repr=False)
    allow_code: bool = False

    def trusting(self, allow_code: bool) -> "Registry":
        """Give this registry, or where code is allowed one that follows import paths too."""
        return replace(self, allow_code=True) if allow_code else self

    def find(self, kind: str, name: str) -> Callable[..., Any]:
        """Find the factory of a name, an alias, or an import path such as ``my_package.pruners:Mine``.

        :raises RegistryError: Where there is none; for an import path where code is not allowed, its import fails, or
            what it gives makes no part of this kind.
        """
        known = self._of_kind(kind)
        real = self.real_name(kind, name)
        if real in known:
            return known[real].factory
        if ":" in name and not self.allow_code:
            raise RegistryError(f"the {kind} {name!r} is an import path, and {ON_TRUST}")
        if ":" in name:
            return _imported(kind, name)
        elsewhere = [*self._elsewhere(kind, name), *_as_import_path(name)]
        raise RegistryError(" ".join([unknown(kind, name, self.choices(kind)), *elsewhere]))

    def names(self, kind: str) -> list[str]:
        """List the names of a kind's parts, without aliases, in alphabetical order."""
        return sorted(self._of_kind(kind))

    def choices(self, kind: str) -> list[str]:
        """List all names that can be written for a kind, aliases too, in alphabetical order."""
        return sorted({*self._of_kind(kind), *self.aliases.get(kind, {})})

    def real_name(self, kind: str, name: str) -> str:
        """Give the name that an alias stands for; any other name is its own."""
        return self.aliases.get(kind, {}).get(name, name)

    def origin(self, kind: str, name: str) -> Origin:
        """Say where a part's code is, and what brought it."""
        offer = self._of_kind(kind).get(self.real_name(kind, name))
        if offer is None:
            return Origin(code_name(self.find(kind, name)), "import path")
        return Origin(code_name(offer.factory), offer.plugin.source)

    def way_out(self, kind: str, name: str) -> str:
        """Say how to go on without a part that a plugin offers, as a sentence."""
        return self._of_kind(kind)[self.real_name(kind, name)].plugin.way_out

    def defaults_for(self, kind: str, name: str) -> Placed:
        """Give the site defaults of a part: value and place by parameter."""
        return self.defaults.get(kind, {}).get(self.real_name(kind, name), {})

    def observers(self) -> list[tuple[str, Callable[[Any], None]]]:
        """List each plugin that hears events, with what to call. To switch one off that raises is the caller's part."""
        return list(self._observers)

    def heard_by(self, name: str, hear: Callable[[Any], None]) -> "Registry":
        """Give the same registry with one more observer.

        :param name: What it is called where it raises.
        """
        return replace(self, _observers=(*self._observers, (name, hear)))

    def _elsewhere(self, wanted: str, name: str) -> Iterator[str]:
        """Say how a name is written that parts of other kinds have."""
        for kind in KINDS:
            if kind != wanted and name in self.choices(kind):
                written = self._written(kind, name, wanted)
                yield f"The {kind} of this name is written {written}." if written else f"A {kind} has this name."

    def _written(self, kind: str, name: str, wanted: str) -> str:
        """Write a part as a recipe has it: after its kind's own key, or inside of a part that takes one.

        :param wanted: The kind that is looked at first for a part that takes it.
        """
        if key := KINDS[kind].key:
            return f"{key}: {name}"
        for outer in (wanted, *KINDS):
            for part, offer in self._of_kind(outer).items():
                inside = [one for one in _parameters(offer.factory) if one.part == (kind, "one")]
                if inside and (key := KINDS[outer].key):
                    return f"{key}: {{use: {part}, {inside[0].name}: {name}}}"
        return ""

    def _of_kind(self, kind: str) -> Mapping[str, Offer]:
        if kind not in KINDS:
            raise RegistryError(unknown("kind of part", kind, tuple(KINDS)))
        return self.offers.get(kind, {})


def _parameters(factory: Callable[..., Any]) -> Iterable[Parameter]:
    """Give a factory's parameters; none where they cannot be read, which is said where it is made."""
    try:
        return parameters_of(factory)[0].values()
    except TypeError:
        return ()


def _as_import_path(name: str) -> Iterator[str]:
    """Say how an import path is written, where a name looks like one."""
    module, dot, attribute = name.rpartition(".")
    if dot and all(part.isidentifier() for part in name.split(".")):
        yield f"If it is code of a module, it is written {module}:{attribute}."


def _imported(kind: str, path: str) -> Callable[..., Any]:
    try:
        found = import_target(path)
    except (Exception, SystemExit) as error:  # whatever its import does, the path is named
        hint = " Is it installed or on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        told = sentence_and_place_of(error)
        raise RegistryError(f"the {kind} {path!r} cannot be imported: {told}{hint}") from error
    if not callable(found):
        raise RegistryError(f"the {kind} {path!r} is {found!r}, which makes no part; name a class or function.")
    problems = [f"{path}: {problem}" for problem in factory_problems(kind, found)]
    if problems:
        raise RegistryError(*problems)
    made: Callable[..., Any] = found
    return made


def load_registry(path: Path | str | None = None, *, installed: bool = True, allow_code: bool = False) -> Registry:
    """Load all plugins: those of the registry file that ships, of a user's own, and of installed distributions.

    :param path: A registry file that extends the one that ships; by default the one that ``ECOFLAP_REGISTRY`` names.
        Whoever names it has the modules run that it names.
    :param installed: Whether to load plugins of installed distributions (entry points of group ``ecoflap``).
    :param allow_code: Whether recipes that are read with this registry may name code by import paths.
    :raises RegistryError: With every plugin that cannot be loaded, and all that is wrong with a registry file.
    """
    return _load(read_settings(path, None), installed=installed).trusting(allow_code)


def load_registry_from(base: Path, path: Path | str | None = None, *, installed: bool = False) -> Registry:
    """Load plugins as :func:`load_registry` does, with another file instead of the one that ships; for tests."""
    return _load(read_settings(path, base), installed=installed)


def _load(settings: Settings, *, installed: bool) -> Registry:
    manager, plugins = register(wanted_plugins(settings, installed=installed))
    offers, problems = _collect(manager, plugins)
    if problems:
        raise RegistryError(*problems)
    problems = [*_wrong_aliases(settings, offers), *_wrong_defaults(settings, offers)]
    if problems:
        raise RegistryError(*problems)
    aliases = {kind: {alias: real.value for alias, real in known.items()} for kind, known in settings.aliases.items()}
    defaults = {
        kind: {aliases.get(kind, {}).get(name, name): values for name, values in known.items()}
        for kind, known in settings.defaults.items()
    }
    return Registry(offers, aliases, defaults, tuple(_observers(manager)))


def _collect(
    manager: pluggy.PluginManager, plugins: Mapping[str, Plugin]
) -> tuple[dict[str, dict[str, Offer]], list[str]]:
    """Ask every plugin for its offers, in the order of loading; pluggy itself would call the last one first."""
    offers: dict[str, dict[str, Offer]] = {kind: {} for kind in KINDS}
    problems: list[str] = []
    for kind, known in offers.items():
        for implementation in getattr(manager.hook, f"ecoflap_register_{kind}s").get_hookimpls():
            plugin = plugins[implementation.plugin_name]
            try:
                offered = implementation.function()
            except (Exception, SystemExit) as error:  # a plugin's own code
                problems.append(f"{plugin} failed to offer its {kind}s: {sentence_of(error)} {plugin.way_out}")
                continue
            problems += _add_offers(kind, known, plugin, offered)
    return offers, problems


def _add_offers(kind: str, known: dict[str, Offer], plugin: Plugin, offered: object) -> Iterable[str]:
    if not isinstance(offered, Mapping):
        yield f"{plugin} should offer its {kind}s as a mapping from name to factory, not {offered!r}. {plugin.way_out}"
        return
    for name, factory in offered.items():
        if not isinstance(name, str) or not name or ":" in name or not callable(factory):
            wanted = "a name without ':' and a callable are wanted"
            yield f"{plugin} offers the {kind} {name!r}: {factory!r}; {wanted}. {plugin.way_out}"
        elif not inspect.isclass(factory) and not inspect.isroutine(factory):
            made = type(factory).__qualname__
            yield (
                f"{plugin} offers the {kind} {name!r} as an object, a {made}, and what makes one is wanted: offer "
                f"{'' if isinstance(factory, partial) else f'the class {made}, or '}a function that makes one. "
                f"{plugin.way_out}"
            )
        elif name in known and known[name].factory is not factory:
            yield _conflict(kind, name, known[name], Offer(factory, plugin))
        else:
            known.setdefault(name, Offer(factory, plugin))


def _conflict(kind: str, name: str, first: Offer, second: Offer) -> str:
    both = " and ".join(f"{code_name(o.factory)} of {o.plugin}" for o in (first, second))
    names = " or ".join(dict.fromkeys(repr(o.plugin.name) for o in (first, second)))
    return f"two plugins offer the {kind} {name!r}: {both}. Put {names} under disable: in your registry file."


def _wrong_aliases(settings: Settings, offers: Mapping[str, Mapping[str, Offer]]) -> Iterable[str]:
    for kind, known in settings.aliases.items():
        for alias, setting in known.items():
            if alias in offers[kind]:
                yield f"{setting.place}: aliases.{kind}.{alias}: is the name of a {kind} already. Choose another."
            elif setting.value not in offers[kind]:
                problem = unknown(kind, str(setting.value), tuple(offers[kind]))
                yield f"{setting.place}: aliases.{kind}.{alias}: {problem}"


def _wrong_defaults(settings: Settings, offers: Mapping[str, Mapping[str, Offer]]) -> Iterable[str]:
    for kind, known in settings.defaults.items():
        for name, values in known.items():
            alias = settings.aliases.get(kind, {}).get(name)
            offer = offers[kind].get(alias.value if alias else name)
            for parameter, setting in values.items():
                problem = _wrong_default(kind, name, parameter, offer, offers)
                if problem:
                    yield f"{setting.place}: defaults.{kind}.{name}.{parameter}: {problem}"


def _wrong_default(
    kind: str, name: str, parameter: str, offer: Offer | None, offers: Mapping[str, Mapping[str, Offer]]
) -> str | None:
    if offer is None:
        return unknown(kind, name, tuple(offers[kind]))
    try:
        parameters, others = parameters_of(offer.factory)
    except TypeError as error:
        return f"{code_name(offer.factory)}: {error}"
    if parameter in parameters or others:
        return None
    known = ", ".join(sorted(parameters)) or "none"
    return f"{name} has no parameter {parameter!r}.{nearest(str(parameter), parameters)} Known: {known}."


def _observers(manager: pluggy.PluginManager) -> Iterable[tuple[str, Callable[[Any], None]]]:
    for implementation in manager.hook.ecoflap_on_event.get_hookimpls():
        hears: Any = implementation.function
        yield implementation.plugin_name, hears if implementation.argnames else _without_event(hears)


def _without_event(hears: Callable[..., Any]) -> Callable[[Any], None]:
    """Call a hook that leaves out the argument, as one may that does not look at it."""

    def call(event: Any) -> None:
        hears()

    return call
