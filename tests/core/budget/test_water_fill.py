"""Counts meet their total and their bounds exactly, whatever the groups."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.water_fill import split, water_fill
from ecoflap.core.errors import EcoflapError

quick = settings(max_examples=60)


@st.composite
def fillings(draw):
    n = draw(st.integers(1, 7))
    lower = [draw(st.integers(0, 50)) for _ in range(n)]
    upper = [low + draw(st.integers(0, 100)) for low in lower]
    slope = [draw(st.just(0.0) | st.floats(1e-6, 1e6)) for _ in range(n)]
    base = [draw(st.integers(-20, 150)) for _ in range(n)]
    return base, slope, lower, upper, draw(st.integers(sum(lower), sum(upper))), [f"b{i}" for i in range(n)]


class TestWaterFill:
    @quick
    @given(fillings())
    def test_sums_exactly_within_bounds(self, filling):
        _, _, lower, upper, total, _ = filling
        counts = water_fill(*filling)
        assert sum(counts) == total
        assert all(low <= k <= high for low, k, high in zip(lower, counts, upper, strict=True))

    @quick
    @given(fillings(), st.randoms(use_true_random=False))
    def test_does_not_depend_on_the_order(self, filling, random):
        *columns, total, names = filling
        order = list(range(len(names)))
        random.shuffle(order)
        shuffled = water_fill(*([c[i] for i in order] for c in columns), total, [names[i] for i in order])
        assert shuffled == [water_fill(*filling)[i] for i in order]

    @quick
    @given(fillings())
    def test_is_one_level_for_all(self, filling):
        """Bisection in floating point finds the same level, to within the one weight that rounding moves."""
        base, slope, lower, upper, total, names = filling
        slope = [s + 1.0 for s in slope]

        def at(t):
            return [min(max(b + t * s, lo), hi) for b, s, lo, hi in zip(base, slope, lower, upper, strict=True)]

        low, high = -1e4, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if math.fsum(at(middle)) < total else (low, middle)
        counts = water_fill(base, slope, lower, upper, total, names)
        assert all(abs(k - level) < 1 + 1e-4 for k, level in zip(counts, at(high), strict=True))

    def test_remainders_go_by_size_then_name(self):
        assert water_fill([0, 0, 0], [1, 1, 1], [0, 0, 0], [9, 9, 9], 4, ["c", "a", "b"]) == [1, 2, 1]
        assert water_fill([0, 0], [3, 5], [0, 0], [9, 9], 3, ["a", "b"]) == [1, 2]

    def test_slope_zero_gets_what_the_others_cannot_take(self):
        assert water_fill([0, 0, 0], [1, 0, 0], [0, 0, 0], [10, 40, 20], 8, list("abc")) == [8, 0, 0]
        assert water_fill([0, 0, 0], [1, 0, 0], [0, 0, 0], [10, 40, 20], 40, list("abc")) == [10, 20, 10]
        assert water_fill([5, 5], [0, 0], [0, 0], [10, 10], 4, list("ab")) == [2, 2]

    def test_bounds_that_cannot_be_met_name_the_numbers(self):
        with pytest.raises(EcoflapError, match=r"at least 12 .* only 11"):
            water_fill([0, 0], [1, 1], [6, 6], [9, 9], 11, ["a", "b"])
        with pytest.raises(EcoflapError, match=r"at most 18 .* leaves 19"):
            water_fill([0, 0], [1, 1], [6, 6], [9, 9], 19, ["a", "b"])
        with pytest.raises(EcoflapError, match=r"b has to keep at least 9 weights and at most 6"):
            water_fill([0, 0], [1, 1], [6, 9], [9, 6], 15, ["a", "b"])

    def test_no_groups(self):
        assert water_fill([], [], [], [], 0, []) == []


class TestSplit:
    @quick
    @given(st.data())
    def test_proportional_and_exact(self, data):
        sizes = data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
        count = data.draw(st.integers(0, sum(sizes)))
        counts = split(count, sizes, [f"l{i}" for i in range(len(sizes))])
        assert sum(counts) == count
        assert all(0 <= k <= n for k, n in zip(counts, sizes, strict=True))
        if sum(sizes):
            assert all(abs(k - count * n / sum(sizes)) < 1 for k, n in zip(counts, sizes, strict=True))

    @quick
    @given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
    def test_full_layers_take_no_more_and_the_others_share_alike(self, layers, share):
        sizes = [size for size, _ in layers]
        most = [int(size * left) for size, left in layers]
        count = int(sum(most) * share)
        counts = split(count, sizes, [f"l{i}" for i in range(len(sizes))], most)
        assert sum(counts) == count
        assert all(0 <= k <= n for k, n in zip(counts, most, strict=True))
        # by bisection: the one share of their sizes at which layers, cut to what they may keep, sum to the count
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            enough = sum(min(middle * n, m) for n, m in zip(sizes, most, strict=True)) >= count
            low, high = (low, middle) if enough else (middle, high)
        assert all(abs(k - min(high * n, m)) < 1 + 1e-6 for k, n, m in zip(counts, sizes, most, strict=True))

    def test_ties_go_by_name(self):
        assert split(3, [4, 4], ["b", "a"]) == [1, 2]

    def test_more_than_there_are(self):
        with pytest.raises(EcoflapError, match=r"9 weights .* 8 in a, b"):
            split(9, [4, 4], ["a", "b"])
        with pytest.raises(EcoflapError, match=r"6 weights .* 5 in a, b"):
            split(6, [4, 4], ["a", "b"], [1, 4])
