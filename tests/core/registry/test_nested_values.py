"""What a parameter holds at any depth is read whole, changed in its place, and written in one order."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from ecoflap.core.registry.nested_values import Unread, changed_inside, in_order, leaves, unread
from ecoflap.core.registry.parameters import Parameter


@dataclass(frozen=True)
class Inner:
    file: Path = Path("a")
    width: int = 1
    made: int = field(default=0, init=False)


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    named: Mapping[str, Path] = field(default_factory=dict)


class Pair(NamedTuple):
    first: Path
    second: int


class Typed(TypedDict):
    width: int


class Model(BaseModel):
    width: int = 1


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    width: int = 1


class Renamed(BaseModel):
    width: int = Field(1, validation_alias="w")


@pydantic_dataclass
class Theirs:
    width: int = 1


@pydantic_dataclass(config=ConfigDict(extra="allow"))
class OpenTheirs:
    width: int = 1


@pydantic_dataclass
class RenamedTheirs:
    width: int = Field(1, alias="w")


@dataclass
class Varied:
    width: int = 1
    scale: InitVar[int] = 1

    def __post_init__(self, scale):
        self.width += scale


@dataclass
class Counts:
    """Does something when it is made."""

    file: Path
    made: int = 0

    def __post_init__(self):
        self.made += 1


def below(item, at):
    return Path("/there") / item if isinstance(item, Path) else item


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("a"), Path("/there/a")),
        ([Path("a"), 1], [Path("/there/a"), 1]),
        ((Path("a"),), (Path("/there/a"),)),
        ({Path("a")}, {Path("/there/a")}),
        (Pair(Path("a"), 2), Pair(Path("/there/a"), 2)),
        (Outer(Inner(Path("b"), 3)), Outer(Inner(Path("/there/b"), 3))),
        (Outer(Inner(Path("/b"))), Outer(Inner(Path("/b")))),
        (
            Outer(several=(Inner(),), named={"x": Path("c")}),
            Outer(Inner(Path("/there/a")), (Inner(Path("/there/a")),), {"x": Path("/there/c")}),
        ),
    ],
)
def test_paths_are_found_at_any_depth(value, expected):
    found = changed_inside(value, below)
    assert found == expected
    assert type(found) is type(value)
    assert all(path.is_absolute() for path in leaves(found) if isinstance(path, Path))


def test_types_are_kept_and_code_of_ones_own_runs_once():
    assert changed_inside(Counts(Path("a")), below) == Counts(Path("/there/a"))
    assert changed_inside(Counts(Path("a")), below).made == 1
    found = changed_inside(OrderedDict(x=Path("a")), below)
    assert type(found) is OrderedDict
    assert found == {"x": Path("/there/a")}


def test_numbers_of_a_set_are_in_their_own_order():
    assert in_order({10, 9, 1}) == [1, 9, 10]
    assert in_order({"b", 1}) == ["b", 1] == in_order({1, "b"})


def test_what_nothing_changes_is_the_same_object():
    value = {"a": [Inner(), {1, 2}]}
    assert changed_inside(value, lambda item, at: item) is value


def test_a_change_is_told_where_it_is():
    steps = []
    changed_inside({"a": [Inner()]}, lambda item, at: steps.append(at))
    assert steps == [("a", 0, "file"), ("a", 0, "width")]


@pytest.mark.parametrize(
    ("annotation", "written", "expected"),
    [
        (Inner, {"width": 2}, []),
        (Inner, {"width": 2, "bogus": 3}, [Unread((), ["bogus"], ["file", "width", "made"])]),
        (Inner, {"made": 3}, []),  # as a run's own recipe.yaml has it
        (Varied, {"scale": 2, "width": 1}, []),
        (list[Inner], [{}, {"bogus": 1}], [Unread((1,), ["bogus"], ["file", "width", "made"])]),
        (Outer, {"inner": {"widht": 1}}, [Unread(("inner",), ["widht"], ["file", "width", "made"])]),
        (dict[str, Inner], {"x": {"bogus": 1}}, [Unread(("x",), ["bogus"], ["file", "width", "made"])]),
        (dict[str, int], {"x": 1, "y": 2}, []),
        (dict[int, int], {"1": 1}, []),
        (Typed, {"width": 1, "bogus": 2}, [Unread((), ["bogus"], ["width"])]),
        (Model, {"bogus": 2}, [Unread((), ["bogus"], ["width"])]),
        (Open, {"bogus": 2}, []),
        (Renamed, {"w": 2}, []),
        (RootModel[dict[str, int]], {"a": 3}, []),
        (Theirs, {"width": 2}, []),
        (Theirs, {"bogus": 2}, [Unread((), ["bogus"], ["width"])]),
        (OpenTheirs, {"bogus": 2}, []),
        (RenamedTheirs, {"w": 2}, []),
        (dict[int, int], {1: 1, "1": 2}, []),
        (Inner | None, None, []),
        (str, "text", []),
    ],
)
def test_keys_that_nothing_reads_are_named(annotation, written, expected):
    assert list(unread(written, Parameter("p", annotation).read(written))) == expected


@dataclass(frozen=True)
class Names:
    names: frozenset[str] = frozenset()


@pytest.mark.parametrize("value", [{"b", "a", "c"}, Names(frozenset({"b", "a", "c"})), {"x": [{"b", "a", "c"}, 1]}])
def test_a_set_has_one_order(value):
    """A process that goes on with a run has another order of its sets, by its own hashes of texts."""
    assert '["a", "b", "c"]' in json.dumps(to_jsonable_python(in_order(value)))


@pytest.mark.parametrize("value", [1, "a", [1, 2], {"a": Path("b")}, Outer()])
def test_what_has_no_set_is_left_as_it_is(value):
    assert in_order(value) is value
