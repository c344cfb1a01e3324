"""The first k against a plain walk over every order that equals can be in."""

from itertools import chain, groupby, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import ModelError
from ecoflap.plugins.evaluators.shared.top_k import cutoffs_below, found_within, likeliest_classes


def orders(scores: list[int]) -> list[list[int]]:
    """Every order from best to worst."""
    best_first = sorted(range(len(scores)), key=lambda number: -scores[number])
    levels = [list(level) for _, level in groupby(best_first, key=lambda number: scores[number])]
    return [[*chain(*chosen)] for chosen in product(*map(permutations, levels))]


def share_of_orders(scores: list[int], right: list[bool], k: int) -> float:
    every = orders(scores)
    return sum(any(right[number] for number in order[:k]) for order in every) / len(every)


candidates = st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=80)
@given(candidates)
def test_is_the_share_of_all_orders_of_equals(row: list[tuple[int, bool]]):
    scores, right = [score for score, _ in row], [is_right for _, is_right in row]
    found = found_within(torch.tensor([scores]).float(), torch.tensor([right]), (1, 2, 5))
    expected = [share_of_orders(scores, right, k) for k in (1, 2, 5)]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_rows_do_not_touch_each_other():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    right = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    assert found_within(scores, right, (1, 2)).tolist() == [[0, 1], [1 - 2 / 3, 1 - 1 / 3], [0, 0]]


def test_a_model_that_finds_all_alike_gets_what_chance_gives():
    found = found_within(torch.zeros(100, 100), torch.eye(100).bool(), (1, 5, 10))
    torch.testing.assert_close(found.mean(0), torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64))


def test_cutoffs_that_cannot_be_missed_are_left_out():
    assert [cutoffs_below(count, (1, 5)) for count in (2, 5, 6)] == [(1,), (1,), (1, 5)]


def test_the_likeliest_class_of_scores_that_are_not_finite_is_none():
    samples = [Sample(image_id=number) for number in range(2)]
    with pytest.raises(ModelError, match="zero_shot: the model's scores of an image are not finite"):
        list(likeliest_classes("zero_shot", samples, 2, lambda batch: torch.full((len(batch), 3), torch.nan)))
    found = list(likeliest_classes("zero_shot", samples, 2, lambda batch: torch.eye(3)[: len(batch)]))
    assert [one.answer for one in found] == [0, 1]
