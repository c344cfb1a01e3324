"""The parameters of a part are read off its factory, whose annotations and defaults are somebody else's code."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import ValidationError

from ecoflap import Dataset, Pruner
from ecoflap.core.registry.parameters import code_name, parameters_of


def fails():
    raise KeyError("no default today")


@dataclass
class Part:
    data: Dataset
    path: Path | None = None
    rest: tuple[Pruner, ...] = ()
    words: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class WrongDefault:
    words: list[str] = field(default_factory=fails)


@dataclass
class Lists:
    views: tuple[str, ...] | None = None
    files: list[Path] = field(default_factory=list)
    either: str | tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    pair: tuple[str, str] = ("a", "b")
    number: int = 1


class WrongName:
    def __init__(self, level: "Levl"): ...  # noqa: F821


class WrongSyntax:
    def __init__(self, level: "int or"): ...


class NoSignature:
    __signature__ = 3


def takes_all(level: int = 1, **others): ...


def test_what_a_parameter_takes():
    parameters, others = parameters_of(Part)
    assert not others
    assert [parameter.name for parameter in parameters.values() if parameter.required] == ["data"]
    assert [parameter.name for parameter in parameters.values() if parameter.optional] == ["path"]
    assert {name: parameter.part for name, parameter in parameters.items() if parameter.part} == {
        "data": ("dataset", "one"),
        "rest": ("pruner", "many"),
    }
    assert parameters["words"].default == ["a"]
    assert parameters["path"].read("x.txt") == Path("x.txt")
    assert parameters["rest"].many([1]) == (1,)


def test_a_factory_may_take_any_others():
    parameters, others = parameters_of(takes_all)
    assert list(parameters) == ["level"]
    assert others
    assert code_name(takes_all).endswith(":takes_all")


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (WrongName, "its parameters cannot be read: name 'Levl' is not defined"),
        (WrongSyntax, "its parameters cannot be read: Forward reference must be an expression"),
        (WrongDefault, "its parameters cannot be read: 'no default today'"),
        (NoSignature, "its parameters cannot be read: unexpected object 3 in __signature__ attribute"),
    ],
)
def test_a_factory_that_cannot_be_read_is_told(factory, told):
    with pytest.raises(TypeError, match=told):
        parameters_of(factory)


def test_a_text_where_a_list_of_texts_is_meant_is_a_list_of_it():
    parameters, _ = parameters_of(Lists)
    assert parameters["views"].read("decoder") == ("decoder",)
    assert parameters["views"].read(["a", "b"]) == ("a", "b")
    assert parameters["views"].read(None) is None
    assert parameters["files"].read("x.txt") == [Path("x.txt")]
    assert parameters["either"].read("a") == "a"
    for name, wrong in (("views", 3), ("counts", "a"), ("pair", "a"), ("number", "1")):
        with pytest.raises(ValidationError):
            parameters[name].read(wrong)
