"""Whose line is named where code of a part raises, in the part itself, in a library or in the engine that it calls."""

import asyncio
import inspect
from pathlib import Path

import pytest
import torch

from ecoflap.core.budget.counts import keep_count
from ecoflap.core.cli.stopping import Stopped
from ecoflap.core.contracts.blame import PartError, blaming, blaming_each
from ecoflap.core.errors import ModelError, WayOut
from ecoflap.core.forward.walk import Finished


def raises_itself():
    raise KeyError("weight")


def asks_a_library():
    torch.zeros(2) @ torch.zeros(3)


def asks_the_engine():
    keep_count(None, 0.5)


def asks_a_function_of_its_own():
    raises_itself()


def line_of(function):
    return inspect.getsourcelines(function)[1] + 1


@torch.no_grad()
def follows_no_gradients():
    raises_itself()


@pytest.mark.parametrize(
    ("part", "at"),
    [
        (follows_no_gradients, raises_itself),
        (raises_itself, raises_itself),
        (asks_a_library, asks_a_library),
        (asks_the_engine, asks_the_engine),
        (asks_a_function_of_its_own, raises_itself),
    ],
)
def test_the_last_line_of_the_parts_own_file_is_named(part, at):
    with pytest.raises(PartError) as refused, blaming("the pruner mine"):
        part()
    # The frame that opened the context is of this file, too, as an engine's would be of its own.
    assert str(refused.value).startswith("the pruner mine raised ")
    assert str(refused.value).endswith(f" It happened in {Path(__file__).name}:{line_of(at)}, {at.__name__}.")


class NobodysException(BaseException):
    """As what a library written in Rust raises where it panics."""


class Leaves(WayOut):
    """The engine's own, that leaves a forward or a command."""


@pytest.mark.parametrize("raised", [NobodysException, SystemExit, asyncio.CancelledError])
def test_what_is_no_exception_is_blamed_on_the_part_too(raised):
    with pytest.raises(PartError, match=rf"^the pruner mine raised {raised.__name__}"), blaming("the pruner mine"):
        raise raised


@pytest.mark.parametrize("raised", [KeyboardInterrupt, Leaves, Stopped, Finished])
def test_what_is_nobodys_mistake_passes(raised):
    with pytest.raises(raised), blaming("the pruner mine"):
        raise raised(2) if raised is Stopped else raised


def test_a_generator_that_nobody_asks_on_is_left_as_it_is():
    def part():
        with blaming("the scorer mine"):
            yield 1

    asked = part()
    assert next(asked) == 1
    asked.close()


def test_what_is_yielded_one_by_one_is_told_the_same_way():
    def part():
        yield 1
        keep_count(None, 0.5)

    with pytest.raises(PartError, match=rf"It happened in {Path(__file__).name}:\d+, part\.$"):
        list(blaming_each("the scorer mine", part()))


def test_a_generator_that_lets_a_stop_iteration_out_is_told_where_it_did():
    """Python raises another error in its place, which happened nowhere in the part."""

    def part():
        yield 1
        next(iter([]))

    with pytest.raises(PartError, match=rf"StopIteration\. It happened in {Path(__file__).name}:\d+, part\.$"):
        list(blaming_each("the scorer mine", part()))


def test_what_happened_in_no_code_of_a_parts_is_told_without_a_place():
    class Odd:
        __iter__ = 7

    with pytest.raises(PartError, match=r"^the scorer mine raised TypeError: 'int' object is not callable\.$"):
        list(blaming_each("the scorer mine", Odd()))


def test_where_a_part_is_that_has_yielded_some_is_told_by_the_last_of_them():
    def part():
        yield from ("first", "second")
        raise KeyError("third")

    def behind(number, item):
        return f", behind {item}, its number {number},"

    with pytest.raises(PartError, match=r"^the scorer mine, behind second, its number 2, raised KeyError: 'third'\."):
        list(blaming_each("the scorer mine", part(), behind))


def test_a_sentence_for_users_passes_as_it_is():
    with pytest.raises(ModelError, match=r"^no such thing$"), blaming("the pruner mine"):
        raise ModelError("no such thing")


def test_want_of_memory_is_told_in_words():
    """Python says nothing with it."""
    said = r"the part raised MemoryError: there was not memory enough\."
    with pytest.raises(PartError, match=said), blaming("the part"):
        raise MemoryError
