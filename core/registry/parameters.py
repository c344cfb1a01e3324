"""Read the parameters of a part off its factory's signature."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import to_jsonable_python

from ecoflap.core.contracts.kinds import KINDS

_KIND_OF = {one.protocol: kind for kind, one in KINDS.items()}
_EMPTY: Any = inspect.Parameter.empty


@dataclass(frozen=True, eq=False)
class Parameter:
    """Describes one parameter of a factory.

    :param annotation: Its resolved type; Any where it has none.
    :param default: ``inspect.Parameter.empty`` where it must be given.
    """

    name: str
    annotation: Any
    default: Any = _EMPTY

    @property
    def required(self) -> bool:
        """Say whether it must be given."""
        return self.default is _EMPTY

    @property
    def part(self) -> tuple[str, Literal["one", "many"]] | None:
        """Give the kind of part it takes, and whether it takes a list of them; None where it takes no part."""
        return _part_kind(self.annotation)

    @property
    def optional(self) -> bool:
        """Say whether it may be null."""
        return NoneType in get_args(self.annotation)

    def many(self, items: list[Any]) -> list[Any] | tuple[Any, ...]:
        """Give items in the container that the parameter is annotated with: a list or a tuple."""
        branches = get_args(self.annotation) if self.optional else (self.annotation,)
        return tuple(items) if any(get_origin(branch) is tuple for branch in branches) else items

    def read(self, written: Any) -> Any:
        """Read what a recipe writes as a value of the parameter's type.

        It is read as JSON, because that, read strictly by pydantic, is what a recipe means: a list may be a tuple, a
        text may be a path or the value of an enum, and nothing else is converted. A text alone where a list of texts is
        meant is a list of it, as it is for the recipe's own keys.

        :raises ValidationError: Where it is no such value.
        """
        try:
            return self._validated(written)
        except ValidationError:
            if isinstance(written, str):
                with suppress(ValidationError):
                    return self._validated([written])
            raise

    def _validated(self, written: Any) -> Any:
        return self._type_adapter.validate_json(json.dumps(to_jsonable_python(written)), strict=True)

    @cached_property
    def _type_adapter(self) -> Any:
        try:
            return TypeAdapter(self.annotation)
        except PydanticSchemaGenerationError:  # of a type that pydantic does not know, only an instance passes
            return TypeAdapter(self.annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _part_kind(annotation: Any) -> tuple[str, Literal["one", "many"]] | None:
    """Find the protocol in an annotation; None where it has none, or is a mapping or the like."""
    if get_origin(annotation) in (Union, UnionType):
        return next(filter(None, map(_part_kind, get_args(annotation))), None)
    if isinstance(annotation, type) and annotation in _KIND_OF:
        return _KIND_OF[annotation], "one"
    inner = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    if len(inner) == 1 and get_origin(annotation) is not Literal and (found := _part_kind(inner[0])):
        return found[0], "many"
    return None


def parameters_of(factory: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """Give a factory's parameters by name, and whether it takes any others too (``**kwargs``).

    :raises TypeError: Where its signature cannot be read, as when an annotation names something that is not there.
    """
    try:
        written = inspect.signature(factory).parameters
        hints = _hints(factory)
        named = {
            name: Parameter(name, hints.get(name, Any), _default(factory, parameter))
            for name, parameter in written.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
    except Exception as error:  # annotations and default factories are code, which may raise anything
        raise TypeError(f"its parameters cannot be read: {str(error) or repr(error)}") from error
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in written.values())


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """Resolve the annotations of a factory's parameters."""
    if not isinstance(factory, type):
        return get_type_hints(factory, include_extras=True)
    # A dataclass's own annotations, for those of its __init__ cannot be resolved if a field comes from another module.
    annotated: Any = factory if dataclasses.is_dataclass(factory) else factory.__init__  # type: ignore[misc]
    return get_type_hints(annotated, include_extras=True)


def _default(factory: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Give what is used where nothing is written; a dataclass's ``default_factory`` is called for it."""
    for field in dataclasses.fields(factory) if dataclasses.is_dataclass(factory) else ():
        if field.name == parameter.name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def why_no_parameter(factory: Callable[..., Any], name: str) -> str:
    """Say why a name that a factory's code has is none of its parameters, with a leading space; empty where it has not.

    A class that lacks ``@dataclass``, an attribute of one that lacks its type, and what Python takes by its place alone
    look like parameters to who wrote them.
    """
    try:
        written = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return ""
    if name in written and written[name].kind is inspect.Parameter.POSITIONAL_ONLY:
        return f" {name} is taken by its place alone; a recipe gives parameters by name: remove the / behind it."
    if not isinstance(factory, type) or not (dataclasses.is_dataclass(factory) or _is_without_init(factory)):
        return ""
    annotated = any(name in inspect.get_annotations(one) for one in factory.__mro__)
    if dataclasses.is_dataclass(factory):
        is_bare = not annotated and _is_value(factory, name)
        return f" Its class has {name} without a type: as `{name}: float = …` it is a parameter." if is_bare else ""
    is_meant = annotated or _is_value(factory, name)
    return f" Its class has {name}, and is no dataclass: write @dataclass above it." if is_meant else ""


def _is_without_init(made: type[Any]) -> bool:
    return all("__init__" not in vars(one) for one in made.__mro__ if one is not object)


def _is_value(made: type[Any], name: str) -> bool:
    """Say whether a class has a value of a name, and no method or property."""
    value = inspect.getattr_static(made, name, None)
    return not name.startswith("_") and value is not None and not isinstance(value, property) and not callable(value)


def code_name(factory: Any) -> str:
    """Give the import path of a factory or of a part, as a recipe may write it: ``module:Class``."""
    named = factory if hasattr(factory, "__qualname__") else type(factory)
    return f"{named.__module__}:{named.__qualname__}"
