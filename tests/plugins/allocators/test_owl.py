import allocated
import pytest
from allocated import posed
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.owl import Owl, ecoflap_register_allocators
from ecoflap.plugins.allocators.uniform import Uniform

quick = settings(max_examples=60)


PROBLEMS = allocated.problems(st.floats(0, 100), least_cap=0.9, share_of_floor=10, lowest=0.2)


def test_is_offered():
    assert ecoflap_register_allocators() == {"owl": Owl}


def test_equal_blocks_as_in_the_paper():
    """keep = 1 - S + 2λ (D - min D)/(max D - min D) - mean, by hand for D = 1, 2, 5."""
    groups = [Group(name, 10_000, score) for name, score in zip("abc", (1.0, 2.0, 5.0), strict=True)]
    r = [0.0, 0.04, 0.16]
    mean = sum(r) / 3
    counts = Owl(spread=0.08)(groups, 9_000)
    assert sum(counts) == 9_000
    assert all(abs(k - 10_000 * (0.3 + share - mean)) < 1 for k, share in zip(counts, r, strict=True))


@quick
@given(PROBLEMS, st.sampled_from([0.0, 0.08, 0.5]))
def test_sums_exactly_within_floors_and_caps(problem, spread):
    groups, keep = posed(problem)
    counts = Owl(spread)(groups, keep)
    assert sum(counts) == keep
    assert all(g.floor <= k <= (g.cap or g.size) for g, k in zip(groups, counts, strict=True))


@quick
@given(PROBLEMS, st.randoms(use_true_random=False), st.integers(-20, 20))
def test_neither_order_nor_scale_counts(problem, random, exponent):
    groups, keep = posed(problem)
    groups = [Group(g.name, g.size, round(g.score, 2), floor=g.floor, cap=g.cap) for g in groups]
    expected = dict(zip((g.name for g in groups), Owl()(groups, keep), strict=True))
    random.shuffle(groups)
    scaled = [Group(g.name, g.size, g.score * 2.0**exponent, floor=g.floor, cap=g.cap) for g in groups]
    assert Owl()(scaled, keep) == [expected[group.name] for group in scaled]


@quick
@given(PROBLEMS)
def test_no_two_groups_differ_by_more_than_twice_the_spread(problem):
    groups, keep = posed(problem)
    groups = [Group(g.name, g.size + 10_000, g.score) for g in groups]
    counts = Owl(0.05)(groups, keep)
    shares = sorted(k / g.size for g, k in zip(groups, counts, strict=True))
    assert shares[-1] - shares[0] <= 2 * 0.05 + 2e-4


def test_more_outliers_keep_more():
    counts = Owl()([Group(f"b{i}", 1000, float(i)) for i in range(6)], 3000)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize(("spread", "scores"), [(0.08, (3.0, 3.0)), (0.0, (1.0, 3.0))])
def test_nothing_to_tell_them_apart_is_uniform(spread, scores):
    groups = [Group("a", 300, scores[0]), Group("b", 101, scores[1])]
    assert Owl(spread)(groups, 201) == Uniform()(groups, 201)


def test_a_cut_share_is_made_up_for_by_all_others():
    groups = [Group("a", 1000, 2.0, cap=500), Group("b", 1000, 1.0), Group("c", 1000, 0.0)]
    counts = Owl(0.1)(groups, 1500)
    assert counts[0] == 500
    assert counts[1] - counts[2] == 100


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_cannot_be_are_named(score):
    with pytest.raises(EcoflapError, match=r"block\.3"):
        Owl()([Group("block.3", 10, score), Group("b", 10, 1.0)], 10)


@pytest.mark.parametrize("spread", [-0.1, 2.0, float("nan")])
def test_spread_is_a_share(spread):
    with pytest.raises(EcoflapError, match="λ"):
        Owl(spread)
