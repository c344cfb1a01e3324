"""Patterns and counts are exact, and what is none is refused."""

from fractions import Fraction

import pytest

from ecoflap.core.budget.counts import Group, Keep, Pattern, check_scores, keep_count
from ecoflap.core.errors import EcoflapError


class TestPattern:
    def test_keeps_n_of_m(self):
        assert Pattern.parse("2:4") == Pattern(2, 4)
        assert Pattern(1, 4).sparsity == Fraction(3, 4)
        assert Pattern(3, 8).keep_of(80) == 30
        assert str(Pattern(2, 4)) == "2:4"

    @pytest.mark.parametrize("text", ["2", "2:", ":4", "a:4", "2:4:8", "-2:4", "2.0:4"])
    def test_other_texts_are_refused(self, text):
        with pytest.raises(EcoflapError, match="as in 2:4"):
            Pattern.parse(text)

    @pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 4)])
    def test_n_is_between_one_and_m(self, n, m):
        with pytest.raises(EcoflapError, match=f"{n}:{m}"):
            Pattern(n, m)


def test_a_count_is_not_negative():
    with pytest.raises(EcoflapError, match="-1"):
        Keep(-1)


class TestKeepCount:
    @pytest.mark.parametrize(
        ("size", "sparsity", "count"),
        [(10, 0.9, 1), (10, "0.9", 1), (1000, 0.7, 300), (3, 0.5, 1), (7, 0, 7), (7, 1, 0), (9, Fraction(1, 3), 6)],
    )
    def test_sparsity_is_an_exact_decimal(self, size, sparsity, count):
        assert keep_count(size, sparsity) == count

    def test_large_sizes_lose_nothing(self):
        assert keep_count(10**18 + 1, 0.1) == 9 * 10**17

    @pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), float("inf"), "half", "1/0"])
    def test_what_is_no_share_is_refused(self, sparsity):
        with pytest.raises(EcoflapError, match=r"between 0 and 1"):
            keep_count(10, sparsity)


@pytest.mark.parametrize(("count", "kept"), [(0, 2), (2, 2), (5, 5), (7, 7), (9, 7)])
def test_a_group_keeps_between_its_floor_and_its_cap(count, kept):
    assert Group("a", 10, 0.0, floor=2, cap=7).clamp(count) == kept


def test_scores_that_are_not_what_an_allocator_wants_are_named():
    groups = [Group("a", 1, 1.0), Group("b", 1, -1.0), Group("c", 1, float("nan"))]
    with pytest.raises(EcoflapError) as caught:
        check_scores(groups, "a score is finite")
    assert caught.value.problems == ("the score of c is nan: a score is finite",)
    with pytest.raises(EcoflapError) as caught:
        check_scores(groups, "it is above 0", lambda score: score > 0)
    assert caught.value.problems == ("the score of b is -1.0: it is above 0", "the score of c is nan: it is above 0")
