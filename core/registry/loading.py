"""Import plugins one by one and register them with pluggy; name one that fails, and how to go on without it."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from ecoflap.core.contracts import hookspecs
from ecoflap.core.contracts.blame import sentence_and_place_of, sentence_of
from ecoflap.core.errors import RegistryError, nearest, unknown
from ecoflap.core.registry.settings import Settings

BUILT_IN = "built-in"


@dataclass(frozen=True)
class Plugin:
    """Names a plugin that is to be loaded.

    :param target: ``module`` or ``module:attribute``.
    :param source: The distribution it came with, the registry file that names it, or ``built-in``.
    """

    name: str
    target: str
    source: str

    def __str__(self) -> str:
        return f"plugin {self.name!r} ({self.target}, {self.source})"

    @property
    def way_out(self) -> str:
        """Say how to go on without it, as a sentence."""
        return f"To go on without it, put {self.name!r} under disable: in your registry file."


def import_target(target: str) -> Any:
    """Import the module, or the attribute of a module, that a text such as ``module:Class`` names.

    :raises RegistryError: Where the module has no such attribute, with the nearest that it has. Whatever else the
        import raises is passed on.
    """
    module_name, _, attributes = target.partition(":")
    found: Any = import_module(module_name)
    for name in filter(None, attributes.split(".")):
        if not hasattr(found, name):
            raise RegistryError(f"{module_name} has no {name!r}.{nearest(name, dir(found))}")
        found = getattr(found, name)
    return found


def wanted_plugins(settings: Settings, *, installed: bool) -> list[Plugin]:
    """List what is to be loaded, in order: the plugins of registry files, then those of distributions by name.

    :param installed: Whether plugins of installed distributions are loaded.
    :raises RegistryError: Where something is disabled that is no plugin.
    """
    listed = [
        Plugin(name, setting.value, BUILT_IN if name in settings.shipped else str(setting.place))
        for name, setting in settings.plugins.items()
    ]
    from_distributions = [_from_entry_point(point) for point in entry_points(group="ecoflap")]
    problems = list(_unknown_disabled(settings, [*listed, *from_distributions]))
    if problems:
        raise RegistryError(*problems)
    on = [plugin for plugin in listed if plugin.name not in settings.disable]
    if installed:
        found = sorted(from_distributions, key=lambda plugin: plugin.name)
        same = {(plugin.name, plugin.target) for plugin in listed}
        on += [p for p in found if p.name not in settings.disable and (p.name, p.target) not in same]
    return on


def _from_entry_point(point: EntryPoint) -> Plugin:
    target = f"{point.module}:{point.attr}" if point.attr else point.module
    source = f"{point.dist.name} {point.dist.version}" if point.dist else "an installed distribution"
    return Plugin(point.name, target, source)


def _unknown_disabled(settings: Settings, plugins: Iterable[Plugin]) -> Iterable[str]:
    names = {plugin.name for plugin in plugins}
    for name, setting in settings.disable.items():
        if name not in names:
            yield f"{setting.place}: disable: {unknown('plugin', name, tuple(names))}"


def register(plugins: Iterable[Plugin]) -> tuple[pluggy.PluginManager, dict[str, Plugin]]:
    """Register plugins with a new manager, and give it with the plugins by name.

    :raises RegistryError: With every plugin that cannot be loaded, and why.
    """
    manager = pluggy.PluginManager("ecoflap")
    manager.add_hookspecs(hookspecs)
    loaded: dict[str, Plugin] = {}
    problems: list[str] = []
    for plugin in plugins:
        if plugin.name in loaded:
            other = loaded[plugin.name]
            problems.append(f"two plugins have one name: {other} and {plugin}. Rename or uninstall one.")
            continue
        loaded[plugin.name] = plugin
        problems += _register_one(manager, plugin)
    if problems:
        raise RegistryError(*problems)
    manager.check_pending()
    return manager, loaded


def _register_one(manager: pluggy.PluginManager, plugin: Plugin) -> list[str]:
    try:
        module = import_target(plugin.target)
        implementation = module() if isinstance(module, type) else module
    except (Exception, SystemExit) as error:  # whatever a plugin does at import, it is named
        return [f"{plugin} did not load: {sentence_and_place_of(error)} {plugin.way_out}"]
    problems = _wrong_hooks(manager, plugin, implementation)
    if problems or manager.is_registered(implementation):
        return problems
    try:
        manager.register(implementation, name=plugin.name)
    except pluggy.PluginValidationError as error:
        return [f"{plugin} cannot be registered: {sentence_of(error)} {plugin.way_out}"]
    return []


def _wrong_hooks(manager: pluggy.PluginManager, plugin: Plugin, implementation: object) -> list[str]:
    """Say what pluggy would say of a plugin's hooks, but all at once, and with the nearest that exists."""
    hooks = {name: tuple(inspect.signature(spec).parameters) for name, spec in _specs().items()}
    found, problems = False, []
    for attribute in dir(implementation):
        options = manager.parse_hookimpl_opts(implementation, attribute)
        if options is None:
            continue
        found = True
        hook = options.get("specname") or attribute
        if hook not in hooks:
            problems.append(f"{plugin}: {unknown('hook', hook, tuple(hooks))} {plugin.way_out}")
            continue
        extra = [
            name for name in inspect.signature(getattr(implementation, attribute)).parameters if name not in hooks[hook]
        ]
        if extra:
            wanted = f"{hook}({', '.join(hooks[hook])})"
            problems.append(
                f"{plugin}: {hook} has no argument {', '.join(extra)}. The hook is {wanted}. {plugin.way_out}"
            )
    if not found:
        problems.append(f"{plugin} has no function marked @hookimpl, so it offers nothing. {plugin.way_out}")
    return problems


def _specs() -> dict[str, Any]:
    return {name: spec for name, spec in vars(hookspecs).items() if name.startswith("ecoflap_")}
