import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Keep, Pattern, keep_count
from ecoflap.core.budget.select import row_counts, select, zeros_first
from ecoflap.core.budget.water_fill import split, water_fill
from ecoflap.core.errors import EcoflapError

quick = settings(max_examples=60, deadline=None)


def slow_select(metric, budget, compare):
    """Stable ascending sort, the first ones go: one run of competitors after the other."""
    rows, columns = metric.shape
    if isinstance(budget, Pattern):
        runs, keeps = metric.reshape(-1, budget.m), [budget.n] * (metric.numel() // budget.m)
    elif compare == "row":
        runs = metric
        keeps = [(i + 1) * budget.count // rows - i * budget.count // rows for i in range(rows)]
    else:
        runs, keeps = metric.reshape(1, -1), [budget.count]
    mask = torch.ones(runs.shape, dtype=torch.bool)
    for run, kept, keep in zip(runs, mask, keeps, strict=True):
        order = sorted(range(len(run)), key=lambda j: (float(run[j]), j))
        kept[order[: len(run) - keep]] = False
    return mask.reshape(rows, columns)


@st.composite
def metrics(draw, columns=None):
    rows, width = draw(st.integers(1, 6)), columns or draw(st.integers(1, 9))
    few = st.integers(-1, 3).map(float)  # many ties
    numbers = st.lists(few | st.floats(-(2.0**90), 2.0**90, width=32), min_size=rows * width, max_size=rows * width)
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return torch.tensor(draw(numbers)).reshape(rows, width).to(dtype)


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

    def test_ties_go_by_name(self):
        assert split(3, [4, 4], ["b", "a"]) == [1, 2]

    def test_more_than_there_are(self):
        with pytest.raises(EcoflapError, match=r"9 weights .* 8 in a, b"):
            split(9, [4, 4], ["a", "b"])


class TestRowCounts:
    @quick
    @given(st.data(), st.integers(1, 50), st.integers(1, 20))
    def test_even_everywhere(self, data, rows, columns):
        count = data.draw(st.integers(0, rows * columns))
        counts = row_counts(count, rows, columns)
        assert counts.dtype == torch.int64
        assert counts.sum() == count
        assert set(counts.tolist()) <= {count // rows, -(-count // rows)}
        for half in range(rows):  # no stretch of rows is more than one ahead
            assert abs(float(counts[:half].sum()) - half * count / rows) < 1

    def test_more_than_there_are(self):
        with pytest.raises(EcoflapError, match="7 weights cannot be kept of the 6"):
            row_counts(7, 2, 3)


class TestSelect:
    @quick
    @given(metrics(), st.data(), st.sampled_from(["row", "layer"]))
    def test_equals_a_stable_sort(self, metric, data, compare):
        budget = Keep(data.draw(st.integers(0, metric.numel())))
        mask = select(metric, budget, compare)
        assert mask.sum() == budget.count
        assert torch.equal(mask, slow_select(metric, budget, compare))

    @quick
    @given(
        metrics(columns=40),
        st.sampled_from([Pattern(2, 4), Pattern(1, 2), Pattern(5, 8), Pattern(7, 20), Pattern(4, 4)]),
    )
    def test_a_pattern_equals_a_stable_sort_of_each_run(self, metric, pattern):
        mask = select(metric, pattern)
        assert torch.equal(mask, slow_select(metric, pattern, "row"))
        assert (mask.reshape(-1, pattern.m).sum(1) == pattern.n).all()

    def test_all_equal(self):
        mask = select(torch.zeros(2, 4), Keep(4))
        assert mask.tolist() == [[False, False, True, True]] * 2

    def test_needs_no_contiguous_metric(self):
        metric = torch.arange(12.0).reshape(4, 3).T
        assert torch.equal(select(metric, Keep(5)), slow_select(metric, Keep(5), "row"))

    def test_leaves_the_metric_alone(self):
        metric = torch.tensor([[3.0, 1.0, 2.0, 1.0]])
        select(metric, Keep(2))
        assert metric.tolist() == [[3.0, 1.0, 2.0, 1.0]]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_refuses_what_is_not_finite(self, bad, dtype):
        metric = torch.ones(3, 4, dtype=dtype)
        metric[1, 2] = bad
        with pytest.raises(EcoflapError, match="NaN or infinite"):
            select(metric, Keep(6))

    def test_refuses_runs_that_do_not_fit(self):
        with pytest.raises(EcoflapError, match="in_features 6 is not divisible by 4"):
            select(torch.ones(2, 6), Pattern(2, 4))

    @pytest.mark.parametrize("compare", ["row", "layer"])
    def test_refuses_more_than_there_are(self, compare):
        with pytest.raises(EcoflapError, match="13 weights cannot be kept of the 12"):
            select(torch.ones(2, 6), Keep(13), compare)


@pytest.mark.parametrize("m", [4, 16])
def test_a_pattern_on_a_matrix_of_many_pieces(m):
    metric = torch.randint(0, 5, (300, 64), generator=torch.Generator().manual_seed(0)).float()
    metric = metric.repeat(1, 8)
    assert torch.equal(select(metric, Pattern(m // 2, m)), slow_select(metric, Pattern(m // 2, m), "row"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_go_before_anything(dtype):
    weight = torch.tensor([[5.0, 0.0, 3.0, -0.0]], dtype=dtype)
    metric = torch.tensor([[0.0, 9.0, -2.0, 9.0]], dtype=dtype)
    assert select(zeros_first(metric, weight), Keep(2)).tolist() == [[True, False, True, False]]
