"""Checks a part written in a recipe against its factory's signature: names, types and values, nothing loaded."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ecoflap.core.errors import EcoflapError, RegistryError
from ecoflap.core.registry.parameters import Parameter, code_name, parameters_of
from ecoflap.core.registry.registry import Registry
from ecoflap.core.text.problems import Problems
from ecoflap.core.text.strict_yaml import KeyPath, named


@dataclass(frozen=True)
class Part:
    """A part that was checked, ready to be built.

    :param kind: ``scorer``, ``pruner`` and so on.
    :param use: Its name, or its import path.
    :param parameters: All of them, defaults too; a parameter that is a part is a :class:`Part`.
    """

    kind: str
    use: str
    parameters: Mapping[str, Any]
    factory: Callable[..., Any] = field(compare=False, repr=False)

    def build(self) -> Any:
        """A new part object."""
        return self.factory(**{name: _built(value) for name, value in self.parameters.items()})

    def trait(self, name: str, default: Any) -> Any:
        """An optional attribute of the part, such as a scorer's ``samples`` or an allocator's ``takes``."""
        return getattr(self.build(), name, default)

    def plain(self) -> dict[str, Any]:
        """As a recipe writes it, with every parameter."""
        return {"use": self.use, **{name: _plain(value) for name, value in self.parameters.items()}}


def _built(value: Any) -> Any:
    if isinstance(value, Part):
        return value.build()
    if isinstance(value, (list, tuple)) and any(isinstance(item, Part) for item in value):
        return type(value)(map(_built, value))
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.plain()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return to_jsonable_python(value)


class PartChecker:
    """Turns what a recipe writes for a part into a :class:`Part`, noting every problem.

    :param registry: Finds the factories and the site defaults.
    """

    def __init__(self, registry: Registry, problems: Problems) -> None:
        self.registry = registry
        self.problems = problems

    def check(self, kind: str, written: Any, path: KeyPath) -> Part | None:
        """The part written at a path, or None if something is wrong with it.

        :param written: A name, ``{use: name, parameter: value}``, or from Python a part object that is a dataclass.
        """
        before = len(self.problems)
        use, given = self._split(kind, written, path)
        use_path = (*path, "use") if isinstance(written, Mapping) else path
        factory = self._find(kind, use, use_path) if use else None
        if not use or factory is None:
            return None
        use = self.registry.real_name(kind, use)
        try:
            parameters, others = parameters_of(factory)
        except TypeError as error:
            self.problems.add(use_path, f"{code_name(factory)}: {error}.")
            return None
        given = {**self._site_defaults(kind, use, given, path), **given}
        if not others:
            self.problems.add_unknown_keys(path, given, parameters, owner=use)
        values = {name: value for name, value in given.items() if name not in parameters and others}
        for parameter in parameters.values():
            values.update(self._parameter(parameter, given, path, use))
        if len(self.problems) > before:
            return None
        part = Part(kind, use, values, factory)
        return part if self._builds(part, given, path) else None

    def _split(self, kind: str, written: Any, path: KeyPath) -> tuple[str | None, dict[str, Any]]:
        if dataclasses.is_dataclass(written) and not isinstance(written, type):
            written = self._as_written(kind, written)
        if isinstance(written, str) and written:
            return written, {}
        if isinstance(written, Mapping) and isinstance(written.get("use"), str):
            return written["use"], {str(key): value for key, value in written.items() if key != "use"}
        found = "this has no use: with a name" if isinstance(written, Mapping) else f"this is {named(written)}"
        known = ", ".join(self.registry.choices(kind)) or "none"
        wanted = f"should be {kind_with_article(kind)}: a name, or {{use: name, parameter: value}}"
        self.problems.add(path, f"{wanted}; {found}. Known: {known}.")
        return None, {}

    def _as_written(self, kind: str, part: Any) -> dict[str, Any]:
        """A part object as a recipe would write it."""
        factory = type(part)
        names = [name for name in self.registry.names(kind) if self.registry.find(kind, name) is factory]
        values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
        return {"use": names[0] if names else code_name(factory), **values}

    def _find(self, kind: str, use: str, path: KeyPath) -> Callable[..., Any] | None:
        try:
            return self.registry.find(kind, use)
        except RegistryError as error:
            self.problems.add(path, str(error))
            return None

    def _site_defaults(self, kind: str, use: str, given: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        found = {}
        for name, setting in self.registry.defaults_for(kind, use).items():
            if name not in given:
                found[name] = setting.value
                self.problems.document.values[(*path, name)] = setting.place
        return found

    def _parameter(self, parameter: Parameter, given: Mapping[str, Any], path: KeyPath, use: str) -> dict[str, Any]:
        """Its name and value; nothing where it is wrong, or a default that a recipe cannot write."""
        inside = (*path, parameter.name)
        if parameter.name not in given:
            if parameter.required:
                self.problems.add(path, f"{use} needs {parameter.name}:, which is missing.")
                return {}
            return self._default(parameter, inside)
        value = given[parameter.name]
        if parameter.part is not None:
            return {parameter.name: self._parts(parameter, value, inside)}
        try:
            return {parameter.name: self._absolute(parameter.read(value), inside)}
        except ValidationError as error:
            self.problems.add_invalid(inside, error)
        except (PydanticUserError, PydanticSerializationError) as error:
            self.problems.add(inside, f"cannot be given in a recipe: {str(error).splitlines()[0]}")
        return {}

    def _default(self, parameter: Parameter, path: KeyPath) -> dict[str, Any]:
        """A default from code. One that its own annotation refuses is left to the code that wrote it."""
        default = parameter.default
        if parameter.part is not None:
            silent = PartChecker(self.registry, Problems(self.problems.document))
            value = silent._parts(parameter, default, path)
            return {} if len(silent.problems) else {parameter.name: value}
        try:
            return {parameter.name: _absolute_in(Path.cwd(), parameter.read(default))}
        except (ValidationError, PydanticUserError, PydanticSerializationError):
            return {}

    def _parts(self, parameter: Parameter, value: Any, path: KeyPath) -> Any:
        assert parameter.part is not None
        kind, number = parameter.part
        if value is None and parameter.optional:
            return None
        if number == "one":
            return self.check(kind, value, path)
        if not isinstance(value, (list, tuple)):
            self.problems.add(path, f"should be a list of {kind}s, not {named(value)}.")
            return None
        return parameter.many([self.check(kind, item, (*path, index)) for index, item in enumerate(value)])

    def _absolute(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(self._absolute(item, (*path, index)) for index, item in enumerate(value))
        return _absolute_in(self.problems.document.where(path).folder, value)

    def _builds(self, part: Part, given: Mapping[str, Any], path: KeyPath) -> bool:
        """Whether its own ``__post_init__`` takes the values together."""
        try:
            part.build()
        except (ValueError, TypeError, OSError, EcoflapError) as error:
            text = " ".join(str(error).split()) or repr(error)
            blamed = next((name for name in given if re.search(rf"\b{re.escape(name)}\b", text)), None)
            self.problems.add((*path, blamed) if blamed else path, f"{part.use}: {text.rstrip('.')}.")
            return False
        return True


def _absolute_in(folder: Path, value: Any) -> Any:
    return absolute(value, folder) if isinstance(value, Path) else value


def absolute(path: Path | str, folder: Path) -> Path:
    """A path relative to a folder; ``~`` is the home directory."""
    return Path(os.path.abspath(folder / Path(path).expanduser()))


def kind_with_article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
