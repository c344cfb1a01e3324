import math
from types import SimpleNamespace

import allocated
import pytest
from allocated import posed
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_contexts import context

from ecoflap.core.budget.counts import Group, keep_count
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.ecoflap import Ecoflap, ecoflap_register_allocators

quick = settings(max_examples=60)


PROBLEMS = allocated.problems(st.just(0.0) | st.floats(1e-9, 1e9), least_cap=0.8, share_of_floor=5, lowest=0.3)


def closed_form(groups, keep, max_sparsity):
    """k_g = min(n_g, lower_g + c S_g) with c by bisection in floating point."""

    def at(c):
        return [min(g.size, (1 - max_sparsity) * g.size + c * g.score) for g in groups]

    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(at(middle)) < keep else (low, middle)
    return at(high)


def test_is_offered():
    assert ecoflap_register_allocators() == {"ecoflap": Ecoflap}


@quick
@given(PROBLEMS)
def test_sums_exactly_within_floors_and_caps(problem):
    groups, keep = posed(problem)
    counts = Ecoflap()(groups, keep)
    assert sum(counts) == keep
    sparsity = 1 - keep / sum(g.size for g in groups)
    for group, count in zip(groups, counts, strict=True):
        assert group.floor <= count <= (group.cap or group.size)
        assert count + 1 > (0.9 - sparsity) * group.size - 1e-6  # max_sparsity, to the weight


@quick
@given(PROBLEMS, st.randoms(use_true_random=False))
def test_does_not_depend_on_the_order(problem, random):
    groups, keep = posed(problem)
    expected = dict(zip(groups, Ecoflap()(groups, keep), strict=True))
    shuffled = groups.copy()
    random.shuffle(shuffled)
    assert Ecoflap()(shuffled, keep) == [expected[group] for group in shuffled]


@quick
@given(PROBLEMS, st.integers(-30, 30))
def test_only_ratios_of_scores_count(problem, exponent):
    groups, keep = posed(problem)
    scaled = [Group(g.name, g.size, g.score * 2.0**exponent, floor=g.floor, cap=g.cap) for g in groups]
    assert Ecoflap()(scaled, keep) == Ecoflap()(groups, keep)


@quick
@given(st.lists(st.tuples(st.integers(100, 10**7), st.floats(1e-3, 1e3)), min_size=2, max_size=20))
def test_is_the_closed_form(sizes_and_scores):
    groups = [Group(f"b{i}", size, score) for i, (size, score) in enumerate(sizes_and_scores)]
    keep = keep_count(sum(g.size for g in groups), 0.5)
    counts = Ecoflap(max_sparsity=0.6)(groups, keep)
    # Rounding up where each starts costs up to one weight a group, which the others make up for.
    for count, level in zip(counts, closed_form(groups, keep, 0.6), strict=True):
        assert abs(count - level) <= len(groups) + 1


@quick
@given(st.lists(st.tuples(st.integers(100, 10**7), st.floats(1e-3, 1e3)), min_size=2, max_size=20))
def test_above_says_the_same_of_any_sparsity(sizes_and_scores):
    groups = [Group(f"b{i}", size, score) for i, (size, score) in enumerate(sizes_and_scores)]
    for sparsity in (0.5, 0.8, 0.97):
        keep = keep_count(sum(g.size for g in groups), sparsity)
        counts = Ecoflap(above=0.05)(groups, keep)
        for count, level in zip(counts, closed_form(groups, keep, min(1.0, sparsity + 0.05)), strict=True):
            assert abs(count - level) <= len(groups) + 1


def test_what_is_not_said_is_the_papers():
    groups = [Group("a", 1000, 3.0), Group("b", 3000, 1.0), Group("c", 500, 2.0)]
    for keep in (900, 2250):
        assert Ecoflap()(groups, keep) == Ecoflap(above=0.1)(groups, keep) == Ecoflap(1.1 - keep / 4500)(groups, keep)
    assert Ecoflap(above=0.0)(groups, 900) == [200, 600, 100]


def test_the_most_is_said_once():
    with pytest.raises(EcoflapError, match=r"max_sparsity is 0\.6 and above 0\.05, and both say the most.* remove one"):
        Ecoflap(0.6, 0.05)


@pytest.mark.parametrize("above", [-0.1, 1.5, float("nan")])
def test_above_is_a_difference_of_sparsities(above):
    with pytest.raises(EcoflapError, match=r"above is .* from 0 to 1"):
        Ecoflap(above=above)


def test_the_gain_is_max_sparsity_less_sparsity():
    """Twice the mean score per weight gets p - 0.1, six times is kept dense, none gets max_sparsity."""
    groups = [Group("zero", 900, 0.0), Group("twice", 100, 200.0), Group("six", 100, 600.0), Group("rest", 100, 400.0)]
    # With no group full the mean is Σ S / N = 1 per weight.
    assert Ecoflap(0.6)(groups, 600)[0] == 360
    full = Ecoflap(0.6)([Group("a", 1000, 6000.0), Group("b", 5000, 0.0)], 3000)
    assert full == [1000, 2000]
    assert Ecoflap(0.6)([Group("a", 100, 200.0), Group("b", 300, 200.0)], 200) == [60, 140]


def test_blocks_of_blip2_with_equal_scores():
    """Smaller blocks are favoured: vision .431, encoder .512, decoder .535 at 50 %."""
    sizes = [25_231_360] * 39 + [48_234_496] * 24 + [65_011_712] * 24
    groups = [Group(f"b{i:02}", size, 1.0) for i, size in enumerate(sizes)]
    counts = Ecoflap(0.6)(groups, sum(sizes) // 2)
    assert [round(1 - counts[i] / sizes[i], 3) for i in (0, 40, 70)] == [0.431, 0.512, 0.535]


def test_no_score_means_equal_sparsity():
    groups = [Group("a", 100, 0.0), Group("b", 300, 0.0)]
    assert Ecoflap()(groups, 200) == [50, 150]


def test_max_sparsity_equal_to_sparsity_is_uniform_although_rounding_up_would_not_fit():
    groups = [Group(name, 3, 1.0) for name in "abc"]
    assert sum(Ecoflap(0.5)(groups, 4)) == 4
    assert max(Ecoflap(0.5)(groups, 4)) == 2


def test_everything_may_go():
    assert Ecoflap()([Group("a", 10, 1.0), Group("b", 10, 2.0)], 0) == [0, 0]


def test_a_max_sparsity_below_the_sparsity_is_refused_with_both_numbers():
    with pytest.raises(EcoflapError, match=r"max_sparsity 0.4 is below the sparsity 0.5.*leave it out"):
        Ecoflap(0.4)([Group("a", 10, 1.0)], 5)


@pytest.mark.parametrize(("sparsity", "found"), [(0.5, 1), (0.4, 0), (0.3, 0), (None, 0)])
def test_and_said_before_the_model_is_loaded(sparsity, found):
    problems = list(Ecoflap(0.4).problems(context(SimpleNamespace(sparsity=sparsity, towers={}))))
    assert len(problems) == found
    towers = {"vision": "keep", "text": SimpleNamespace(sparsity=None), "language": SimpleNamespace(sparsity=sparsity)}
    of_tower = list(Ecoflap(0.4).problems(context(SimpleNamespace(sparsity=0.1, towers=towers))))
    assert of_tower == [f"towers.language: {problem}" for problem in problems]
    assert all("0.4" in problem and "0.5" in problem for problem in problems)


@pytest.mark.parametrize("max_sparsity", [-0.1, 1.5, float("nan")])
def test_max_sparsity_is_a_share(max_sparsity):
    with pytest.raises(EcoflapError, match="between 0 and 1"):
        Ecoflap(max_sparsity)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0])
def test_scores_that_cannot_be_are_named(score):
    groups = [Group("good", 10, 1.0), Group("block.3", 10, score), Group("block.4", 10, score)]
    with pytest.raises(EcoflapError, match=r"(?s)2 problems.*block\.3 is .*block\.4") as refused:
        Ecoflap()(groups, 10)
    assert "good" not in str(refused.value)


def test_floors_that_cannot_be_met():
    with pytest.raises(EcoflapError, match=r"at least 140 .* only 100"):
        Ecoflap()([Group("a", 100, 1.0, floor=100), Group("b", 100, 1.0, floor=40)], 100)
