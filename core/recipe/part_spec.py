"""A part as a recipe writes it: its name and parameters, checked, and the one object that a run uses."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic_core import to_jsonable_python

from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.registry.nested_values import in_order


@dataclass(frozen=True)
class PartSpec:
    """A part that a recipe names, with parameters that fit it.

    :param kind: ``scorer``, ``pruner`` and so on.
    :param use: Its registered name, or its import path.
    :param parameters: All of them, defaults too. A parameter that is itself a part is a :class:`PartSpec`.
    :param factory: What makes the part of its parameters.
    """

    kind: str
    use: str
    parameters: Mapping[str, Any]
    factory: Callable[..., Any] = field(compare=False, repr=False)

    def build(self) -> Any:
        """Make a new part of these parameters, for one that keeps state, as an adapter keeps its processor."""
        return self.factory(**{name: _built(value) for name, value in self.parameters.items()})

    @cached_property
    def built(self) -> Any:
        """Give the part itself, made once, when the recipe is checked; everything that runs uses this object."""
        return self.build()

    @cached_property
    def options(self) -> Any:
        """Its optional members, read once: a ``ScorerOptions`` of a scorer, and so on."""
        return options_of(KINDS[self.kind].options, self.built)

    def plain(self) -> dict[str, Any]:
        """Write it as a recipe does, with every parameter."""
        return {"use": self.use, **{name: _plain(value) for name, value in self.parameters.items()}}

    def with_inner(self, where: str) -> "Iterator[tuple[str, PartSpec]]":
        """Yield this spec and all specs among its parameters, each with its dotted place below ``where``."""
        yield where, self
        for name, value in self.parameters.items():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(inner, PartSpec):
                    yield from inner.with_inner(f"{where}.{name}")

    @property
    def strange_candidates(self) -> list[Any]:
        """Give what it names to be tried and is no allocator among its parameters, so that no recipe could say it."""
        known = [spec.built for _, spec in self.with_inner("")]
        return [one for one in self.options.candidates if not any(one is built for built in known)]

    @property
    def candidates(self) -> "dict[str, PartSpec]":
        """Give the allocators that are tried, by labels that tell them apart; of most that is this one alone."""
        tried = [spec for _, spec in self.with_inner("") if any(spec.built is one for one in self.options.candidates)]
        uses = [spec.use for spec in tried]
        labels = [use if uses.count(use) == 1 else f"{use} {at}" for at, use in enumerate(uses, 1)]
        return dict(zip(labels, tried, strict=True)) or {self.use: self}


def _built(value: Any) -> Any:
    if isinstance(value, PartSpec):
        return value.built
    if isinstance(value, (list, tuple)) and any(isinstance(item, PartSpec) for item in value):
        return type(value)(map(_built, value))
    # A part may fill a list that it is given, and the recipe says what it was begun with.
    return deepcopy(value) if isinstance(value, (list, tuple, dict, set)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, PartSpec):
        return value.plain()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return to_jsonable_python(in_order(value))
