"""Masks keep exactly what the budget says, and what a stable sort would keep."""

import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.budget.select import check_finite, check_fits, row_counts, select, zeros_first
from ecoflap.core.errors import EcoflapError

quick = settings(max_examples=60)


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

    @pytest.mark.parametrize("budget", [Keep(6), Pattern(1, 2)])
    def test_refuses_to_compare_in_a_way_that_is_not_known(self, budget):
        with pytest.raises(EcoflapError, match=r"way to compare named 'rows'\. Did you mean 'row'\? Known: layer, row"):
            unwrap(select)(torch.ones(2, 6), budget, "rows")  # as it is where no test checks types

    @pytest.mark.parametrize("budget", [0.5, 3])
    def test_what_is_no_budget_is_told(self, budget):
        with pytest.raises(
            EcoflapError, match=rf"the budget is {budget}; it is a Keep or a Pattern, as a pruner is given"
        ):
            unwrap(check_fits)(budget, 2, 6)

    def test_whole_numbers_are_no_metric(self):
        with pytest.raises(
            EcoflapError, match=r"the metric is torch\.int64; a floating-point one is wanted, as metric\.fl"
        ):
            unwrap(check_finite)(torch.ones(2, 6, dtype=torch.int64))

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
