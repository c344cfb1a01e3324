"""Equal marginals against closed forms and against every division of a small budget."""

from itertools import product
from math import exp, log

import allocated
import pytest
from allocated import posed
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group
from ecoflap.core.budget.curves import Curve
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.marginal import Marginal, ecoflap_register_allocators

quick = settings(max_examples=60)
PROBLEMS = allocated.problems(st.floats(0, 100), least_cap=0.9, share_of_floor=10, lowest=0.2)
LEVELS = (0.4, 0.6, 0.8)


def grows(name, size, a, b, **keywords):
    """A group whose loss rises by exp(a + b·s)."""
    return Group(name, size, 0.0, curve=Curve(LEVELS, tuple(exp(a + b * s) for s in LEVELS)), **keywords)


def test_is_offered():
    assert ecoflap_register_allocators() == {"marginal": Marginal}


@pytest.mark.parametrize("sizes", [(10_000, 10_000), (10_000, 30_000)])
def test_two_exponentials_in_closed_form(sizes):
    """From b₁·exp(a₁ + b₁·s₁)/n₁ = b₂·exp(a₂ + b₂·s₂)/n₂ and n₁·s₁ + n₂·s₂ = N·s, solved by hand for s₁."""
    (n1, n2), (a1, b1), (a2, b2) = sizes, (-7.0, 8.0), (-6.0, 5.0)
    total = n1 + n2
    pruned = total * 6 // 10
    difference = a2 - a1 + log(b2 / n2) - log(b1 / n1)  # b1·s1 − b2·s2
    s1 = (difference + b2 * pruned / n2) / (b1 + b2 * n1 / n2)
    counts = Marginal(below=1.0, above=1.0)([grows("a", n1, a1, b1), grows("b", n2, a2, b2)], total - pruned)
    assert sum(counts) == total - pruned
    assert counts[0] == pytest.approx(n1 * (1 - s1), abs=1)
    assert 0.3 < s1 < 0.9


@quick
@given(
    st.lists(st.tuples(st.integers(2, 9), st.floats(-6, 0), st.floats(1, 9)), min_size=1, max_size=4),
    st.sampled_from([0.3, 0.5, 0.7]),
)
def test_no_division_of_a_small_budget_costs_less(rows, share):
    """Counts are whole, so that each lies less than one weight from the best real division of all."""
    groups = [grows(f"g{i}", n, a, b) for i, (n, a, b) in enumerate(rows)]
    keep = int(share * sum(n for n, _, _ in rows))

    def cost(counts):
        return sum(exp(a + b * (1 - k / n)) for k, (n, a, b) in zip(counts, rows, strict=True))

    counts = Marginal(below=1.0, above=1.0)(groups, keep)
    assert sum(counts) == keep
    best = min(cost(c) for c in product(*(range(n + 1) for n, _, _ in rows)) if sum(c) == keep)
    one_more = max(cost([k - (k > 0) for k in counts]) - cost(counts), 0.0)
    assert cost(counts) <= best + one_more + 1e-9


def test_what_costs_more_keeps_more_and_bounds_are_held_to():
    groups = [grows(str(i), 1000, -8.0 + 2 * i, 4.0) for i in range(5)]
    counts = Marginal()(groups, 2000)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (300, 600)
    assert sum(counts) == 2000
    assert Marginal(below=0.0, above=0.0)(groups, 2000) == [400] * 5


@quick
@given(PROBLEMS, st.lists(st.lists(st.floats(-1, 1e6), min_size=3, max_size=3), min_size=8, max_size=8))
def test_sums_exactly_within_floors_and_caps_whatever_was_measured(problem, rises):
    groups, keep = posed(problem)
    groups = [
        Group(g.name, g.size, 0.0, floor=g.floor, cap=g.cap, curve=Curve(LEVELS, tuple(rise)))
        for g, rise in zip(groups, rises, strict=False)
    ]
    counts = Marginal(below=1.0, above=1.0)(groups, keep)
    assert sum(counts) == keep
    assert all(g.floor <= k <= g.most for g, k in zip(groups, counts, strict=True))


def test_rises_below_nothing_count_as_next_to_nothing():
    flat, small = Curve(LEVELS, (-0.1, 0.0, -2.0)), Curve(LEVELS, (1e-4, 1e-4, 1e-4))
    others = [grows("c", 500, -4.0, 5.0)]
    first, second = ([Group("a", 500, 0.0, curve=curve), *others] for curve in (flat, small))
    assert Marginal()(first, 400) == Marginal()(second, 400)


def test_groups_without_curves_are_named():
    with pytest.raises(EcoflapError, match=r"has none of block\.3"):
        Marginal()([Group("block.3", 10, 1.0), grows("b", 10, 0.0, 1.0)], 10)


@pytest.mark.parametrize("wrong", [{"below": -0.1}, {"above": 1.5}, {"above": float("nan")}])
def test_bounds_are_shares(wrong):
    with pytest.raises(EcoflapError, match=f"{next(iter(wrong))} is"):
        Marginal(**wrong)
