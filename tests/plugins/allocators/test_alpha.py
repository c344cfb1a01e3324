"""AlphaPruning's map of exponents to sparsities against its formula in floats."""

import allocated
import numpy as np
import pytest
from allocated import posed
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.alpha import Alpha, ecoflap_register_allocators
from ecoflap.plugins.allocators.uniform import Uniform

quick = settings(max_examples=60)
PROBLEMS = allocated.problems(st.floats(0.05, 0.99), least_cap=0.9, share_of_floor=10, lowest=0.2)


def test_is_offered():
    assert ecoflap_register_allocators() == {"alpha": Alpha}


@pytest.mark.parametrize("sizes", [(1000, 1000, 1000), (500, 4000, 900)])
def test_exponents_are_mapped_as_in_the_paper(sizes):
    alphas, n = np.array([2.0, 2.5, 6.0]), np.array(sizes)
    ratios = (alphas - 2) / 4 * (1.3 - 0.7) + 0.7
    keep = int(0.4 * n.sum())
    eta = (n.sum() - keep) / (ratios * n).sum()
    groups = [Group(str(i), int(size), 1 / a) for i, (size, a) in enumerate(zip(n, alphas, strict=True))]
    counts = Alpha()(groups, keep)
    assert sum(counts) == keep
    assert np.abs(np.array(counts) - n * (1 - eta * ratios)).max() < 1


@quick
@given(PROBLEMS, st.sampled_from([0.0, 0.3, 0.9]))
def test_sums_exactly_within_floors_and_caps(problem, spread):
    groups, keep = posed(problem)
    counts = Alpha(spread)(groups, keep)
    assert sum(counts) == keep
    assert all(g.floor <= k <= g.most for g, k in zip(groups, counts, strict=True))


@pytest.mark.parametrize(("spread", "scores"), [(0.0, (0.2, 0.4)), (0.3, (0.4, 0.4))])
def test_nothing_to_tell_them_apart_is_uniform(spread, scores):
    groups = [Group("a", 300, scores[0]), Group("b", 101, scores[1])]
    assert Alpha(spread)(groups, 201) == Uniform()(groups, 201)


def test_what_would_lose_more_than_all_of_it_loses_all_of_it():
    groups = [Group("a", 1000, 1 / 2.0), Group("b", 1000, 1 / 9.0)]
    assert Alpha(spread=0.9)(groups, 300) == [300, 0]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 0.0, -1.0])
def test_scores_that_cannot_be_are_named(score):
    with pytest.raises(EcoflapError, match=r"block\.3"):
        Alpha()([Group("block.3", 10, score), Group("b", 10, 0.4)], 10)


@pytest.mark.parametrize("spread", [-0.1, 1.0, float("nan")])
def test_spread_is_a_share(spread):
    with pytest.raises(EcoflapError, match="τ"):
        Alpha(spread)
