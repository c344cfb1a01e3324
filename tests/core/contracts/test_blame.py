"""Whose line is named where code of a part raises, in the part itself, in a library or in the engine that it calls."""

import inspect
from pathlib import Path

import pytest
import torch

from ecoflap.core.budget.counts import keep_count
from ecoflap.core.contracts.blame import PartError, blaming, blaming_each
from ecoflap.core.errors import ModelError


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


@pytest.mark.parametrize(
    ("part", "at"),
    [
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


def test_what_is_yielded_one_by_one_is_told_the_same_way():
    def part():
        yield 1
        keep_count(None, 0.5)

    with pytest.raises(PartError, match=rf"It happened in {Path(__file__).name}:\d+, part\.$"):
        list(blaming_each("the scorer mine", part()))


def test_a_sentence_for_users_passes_as_it_is():
    with pytest.raises(ModelError, match=r"^no such thing$"), blaming("the pruner mine"):
        raise ModelError("no such thing")
