"""Reads a part that a recipe writes and holds it to its factory's signature and its kind's contract."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import date
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from pydantic import ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from ecoflap.core.contracts.answers import LARGEST, shown
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import contract_problems, factory_problems, with_article
from ecoflap.core.disk.paths import PathError, recordable
from ecoflap.core.errors import EcoflapError, RegistryError, one_line
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.registry.nested_values import changed_inside, unread
from ecoflap.core.registry.parameters import Parameter, code_name, parameters_of, why_no_parameter
from ecoflap.core.registry.registry import ON_TRUST, Registry
from ecoflap.core.text.problems import Problems
from ecoflap.core.text.strict_yaml import KeyPath, described

_WRITTEN = (str, int, float, date, list, tuple, Mapping, type(None))
"""What YAML has; anything else is an object from Python."""


class _Found(NamedTuple):
    """Holds what makes a part, with what is given for its parameters.

    :param use: The name under which a recipe writes it.
    :param takes_others: Whether it takes parameters of any name.
    """

    use: str
    factory: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    given: Mapping[str, Any]
    takes_others: bool


class PartReader:
    """Turns what a recipe writes for a part into a :class:`PartSpec`, noting every problem.

    :param registry: Finds the factories and the site defaults.
    """

    def __init__(self, registry: Registry, problems: Problems) -> None:
        self.registry = registry
        self.problems = problems

    def check(
        self,
        kind: str,
        written: Any,
        path: KeyPath,
        fill: Mapping[str, Any] = MappingProxyType({}),
        beside: Collection[str] = (),
    ) -> PartSpec | None:
        """Read the part written at a path; None, and problems, where something is wrong with it.

        :param written: A name, ``{use: name, parameter: value}``; or from Python a part object that is a dataclass,
            or a class or function that makes one, also as the ``use``.
        :param fill: Values for parameters of these names that are set neither here nor by the site's registry file.
        :param beside: Keys of the engine's that are written beside the part's parameters, and never reach it.
        """
        before = len(self.problems)
        found = self._found(kind, written, path, fill)
        if found is None or self._has_names_of_keys(found, path, ("use", *beside)):
            return None
        values, wrong = self._values(found, path)
        part = PartSpec(kind, found.use, values, found.factory)
        if len(self.problems) > before:
            if not any(one.required for one in wrong):
                self._refused_besides(part, found.given, path, [one.name for one in wrong])
            return None
        return part if self._builds(part, found.given, path) else None

    def _found(self, kind: str, written: Any, path: KeyPath, fill: Mapping[str, Any]) -> _Found | None:
        """Find what makes a part, and all that is given for its parameters; None, and problems, where nothing does."""
        use, given = self._split(kind, written, path)
        use_path = (*path, "use") if isinstance(written, Mapping) else path
        factory = self._find(kind, use, use_path) if isinstance(use, str) else use
        if use is None or factory is None:
            return None
        try:
            parameters, others = parameters_of(factory)
        except TypeError as error:
            self.problems.add(use_path, f"{code_name(factory)}: {error}.")
            return None
        # A function that lacks arguments may be the part itself, which is called with them; its annotations tell.
        lacks = inspect.isfunction(use) and any(one.required and one.name not in given for one in parameters.values())
        if lacks and (unmade := " ".join(factory_problems(kind, factory))):
            self.problems.add(use_path, f"{code_name(factory)}: {unmade}")
            return None
        name = self.registry.real_name(kind, use) if isinstance(use, str) else self._name_of(kind, use)
        filled = {key: value for key, value in fill.items() if _takes(parameters.get(key), value)}
        given = {**filled, **self._site_defaults(kind, name, given, path), **given}
        return _Found(name, factory, parameters, given, takes_others=others)

    def _has_names_of_keys(self, found: _Found, path: KeyPath, keys: Collection[str]) -> bool:
        """Say whether parameters have the names of keys that are read before them, and note which."""
        taken = [name for name in found.parameters if name in keys]
        for name in taken:
            self.problems.add(
                path,
                f"{found.use} has a parameter {name!r}, which nothing could set here: {name}: is a key of the recipe's "
                "own. Give the parameter another name.",
            )
        return bool(taken)

    def _values(self, found: _Found, path: KeyPath) -> tuple[dict[str, Any], list[Parameter]]:
        """Read all parameters of a part by their names; and tell which of them are wrong."""
        if not found.takes_others:
            hints = {name: why_no_parameter(found.factory, name) for name in found.given}
            self.problems.add_unknown_keys(path, found.given, found.parameters, owner=found.use, hints=hints)
        others = {name: value for name, value in found.given.items() if name not in found.parameters}
        values, wrong = others if found.takes_others else {}, []
        for parameter in found.parameters.values():
            noted = len(self.problems)
            values.update(self._parameter(parameter, found.given, path, found.use))
            wrong += [parameter] if len(self.problems) > noted else []
        return values, wrong

    def _split(self, kind: str, written: Any, path: KeyPath) -> tuple[str | Callable[..., Any] | None, dict[str, Any]]:
        if dataclasses.is_dataclass(written) and not isinstance(written, type):
            written = _as_written(written)
        if (isinstance(written, str) and written) or _makes(written):
            return written, {}
        use = written.get("use") if isinstance(written, Mapping) else None
        if isinstance(use, str) or _makes(use):
            return use, {str(key): value for key, value in written.items() if key != "use"}
        found = "this has no use: with a name" if isinstance(written, Mapping) else f"this is {described(written)}"
        if not isinstance(written, _WRITTEN):
            found += ", of which no recipe could say how it was made: make its class a dataclass, or give the class"
        known = ", ".join(self.registry.choices(kind)) or "none"
        wanted = f"should be {with_article(kind)}: a name, or {{use: name, parameter: value}}"
        self.problems.add(path, f"{wanted}; {found}. Known: {known}.")
        return None, {}

    def _name_of(self, kind: str, factory: Callable[..., Any]) -> str:
        """Give the name under which a recipe writes what Python gave: the registered one, or its import path."""
        names = [name for name in self.registry.names(kind) if self.registry.find(kind, name) is factory]
        return names[0] if names else code_name(factory)

    def _find(self, kind: str, use: str, path: KeyPath) -> Callable[..., Any] | None:
        try:
            return self.registry.find(kind, use)
        except RegistryError as error:
            for problem in error.problems:
                self.problems.add(path, problem)
            return None

    def _site_defaults(self, kind: str, use: str, given: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        found = {}
        for name, setting in self.registry.defaults_for(kind, use).items():
            if name not in given:
                found[name] = setting.value
                self.problems.document.values[(*path, name)] = setting.place
        return found

    def _parameter(self, parameter: Parameter, given: Mapping[str, Any], path: KeyPath, use: str) -> dict[str, Any]:
        """Read one parameter as a mapping from its name; empty where it is wrong, or a default no recipe can write."""
        at = (*path, parameter.name)
        if parameter.name not in given:
            if parameter.required:
                self.problems.add(path, f"{use} needs {parameter.name}:, which is missing.")
                return {}
            return self._default(parameter, at)
        value = given[parameter.name]
        if parameter.part is not None:
            return {parameter.name: self._parts(parameter, value, at)}
        try:
            read = self._absolute(parameter.read(value), value, at)
            if not self._is_read_whole(value, read, at):
                return {}
            if not _is_finite(read):
                self.problems.add(at, f"should be finite, not {described(read)}: no report holds an infinity.")
            elif not _fits(read):
                self.problems.add(at, f"should be a whole number of at most 64 bits, not {described(read)}.")
            else:
                return {parameter.name: read}
        except ValidationError as error:
            self.problems.add_invalid(at, error)
        except (PydanticUserError, PydanticSerializationError) as error:
            self.problems.add(at, f"cannot be given in a recipe: {str(error).splitlines()[0]}")
        except PathError as error:
            self.problems.add(at, f"{error}.")
        return {}

    def _default(self, parameter: Parameter, path: KeyPath) -> dict[str, Any]:
        """Read a default from code. One that its own annotation refuses is left to the code that wrote it."""
        default = parameter.default
        if parameter.part is not None:
            silent = PartReader(self.registry, Problems(self.problems.document))
            value = silent._parts(parameter, default, path)
            return {} if len(silent.problems) else {parameter.name: value}
        try:
            read = changed_inside(parameter.read(default), lambda item, _: _absolute_in(Path.cwd(), item))
            return {parameter.name: read} if _is_finite(read) else {}
        except (ValueError, PydanticUserError, PydanticSerializationError, PathError):  # bytes may be no text
            return {}

    def _parts(self, parameter: Parameter, value: Any, path: KeyPath) -> Any:
        assert parameter.part is not None
        kind, number = parameter.part
        if value is None and parameter.optional:
            return None
        if number == "one":
            return self.check(kind, value, path)
        if not isinstance(value, (list, tuple)):
            self.problems.add(path, f"should be a list of {kind}s, not {described(value)}.")
            return None
        return parameter.many([self.check(kind, item, (*path, index)) for index, item in enumerate(value)])

    def _absolute(self, value: Any, written: Any, path: KeyPath) -> Any:
        """Take each path in a value relative to the file that writes it, and a default from code to where one works."""

        def absolute(item: Any, at: KeyPath) -> Any:
            folder = self.problems.document.where((*path, *at)).folder
            return _absolute_in(folder if _is_written(written, at) else Path.cwd(), item)

        return changed_inside(value, absolute)

    def _is_read_whole(self, written: Any, read: Any, path: KeyPath) -> bool:
        """Say whether all that is written inside of a parameter has gone into it; note what has not."""
        found = list(unread(written, read))
        for one in found:
            self.problems.add_unknown_keys((*path, *one.path), one.keys, one.known)
        return not found

    def _builds(self, part: PartSpec, given: Mapping[str, Any], path: KeyPath) -> bool:
        """Build it, and note where its own code refuses the values or where it breaks its kind's contract."""
        noted = len(self.problems)
        try:
            with blaming(f"the {part.kind}"):
                built = self._made(part, given, path)
                if len(self.problems) > noted:
                    return False
                broken = list(_broken(part, built))
                code = [] if broken or self.registry.allow_code else list(part.options.runs_code_of())
        except EcoflapError as error:
            self.problems.add(path, f"{part.use}: {error}")
            return False
        for problem in broken:
            self.problems.add(path, f"{part.use}: {problem}")
        for file in code:
            name = next((name for name, value in part.parameters.items() if value == file), None)
            at = (*path, name) if name else path
            self.problems.add(at, f"{part.use} runs the code that it finds in {file}, and {ON_TRUST}")
        return not broken and not code

    def _made(self, part: PartSpec, given: Mapping[str, Any], path: KeyPath) -> Any:
        """Make the part; None, and a problem at the parameter it names, where its own code refuses the values."""
        try:
            return part.built
        except (ValueError, TypeError, OSError, EcoflapError) as error:
            text = one_line(error) or repr(error)
            blamed = next((name for name in given if _names(text, name)), None)
            self.problems.add((*path, blamed) if blamed else path, f"{part.use}: {text.rstrip('.')}.")
            if blamed is not None:
                self._refused_besides(part, given, path, [blamed])
            return None

    def _refused_besides(self, part: PartSpec, given: Mapping[str, Any], path: KeyPath, wrong: list[str]) -> None:
        """Note what a part's own code refuses beside parameters that are wrong already, with their defaults for these.

        Its code says one thing at a time. What it says of no other parameter, or of a wrong one too, may be about such
        a default, and ends this.
        """
        left = {name: value for name, value in part.parameters.items() if name not in wrong}
        try:
            replace(part, parameters=left).build()
        except (Exception, SystemExit) as error:  # of parameters that nobody has written together
            text = one_line(error) or repr(error)
            blamed = next((name for name in given if name in left and _names(text, name)), None)
            if blamed is not None and not any(_names(text, name) for name in wrong):
                self.problems.add((*path, blamed), f"{part.use}: {text.rstrip('.')}.")
                self._refused_besides(part, given, path, [*wrong, blamed])


def _broken(part: PartSpec, built: Any) -> Iterator[str]:
    """Say where what was built breaks the contract of its kind."""
    if built is None:
        yield f"what makes it has returned nothing: return the {part.kind}, as `return MyClass(…)` does"
        return
    broken = list(contract_problems(part.kind, built, part.parameters))
    yield from broken
    if part.kind == "allocator" and not broken and (strange := part.strange_candidates):
        yield (
            f"its candidates are allocators that its parameters were given, such as of: tuple[Allocator, ...], and "
            f"{shown(strange[0])} is none of them"
        )


def _as_written(part: Any) -> dict[str, Any]:
    """Write a part object from Python as a recipe would, with its class for its name."""
    return {"use": type(part), **{f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}}


def _makes(written: Any) -> TypeGuard[Callable[..., Any]]:
    """Say whether this is a class or a function, which only a recipe from Python can hold."""
    return isinstance(written, type) or inspect.isfunction(written)


def _names(text: str, name: str) -> bool:
    """Say whether a text has a parameter's name in it, as a word."""
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _takes(parameter: Parameter | None, value: Any) -> bool:
    """Say whether a parameter is there and has a default of the value's own type, as a seed has."""
    return parameter is not None and type(parameter.default) is type(value)


def _is_finite(value: Any) -> bool:
    """Say whether no number in a value is NaN or infinite, which JSON and so a report cannot hold."""
    return all(isfinite(one) for one in _inside(value) if isinstance(one, float))


def _fits(value: Any) -> bool:
    """Say whether no whole number in a value is larger than those of 64 bits, with which libraries compute."""
    return all(abs(one) <= LARGEST for one in _inside(value) if isinstance(one, int))


def _is_written(written: Any, at: KeyPath) -> bool:
    """Say whether a recipe writes what is inside of a parameter, and does not leave it to a default."""
    for step in at:
        if isinstance(written, Mapping):
            if step not in written:
                return False
            written = written[step]
        elif isinstance(written, (list, tuple)) and isinstance(step, int):
            written = written[step]
    return True


def _inside(value: Any) -> Iterator[Any]:
    """Yield what lists and mappings hold at any depth, but not what code of somebody's own has made of them."""
    if isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _inside(item)
    else:
        yield value


def _absolute_in(folder: Path, value: Any) -> Any:
    return recordable(value, folder) if isinstance(value, Path) else value
