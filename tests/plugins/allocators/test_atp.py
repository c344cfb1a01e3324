"""An arithmetic progression against the paper's formula, with blocks of one size and of several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group
from ecoflap.core.errors import EcoflapError
from ecoflap.plugins.allocators.atp import Atp, ecoflap_register_allocators
from ecoflap.plugins.allocators.uniform import Uniform


def layers(sizes, tower="language"):
    """A group for each layer: one list of sizes a block."""
    return [
        Group(f"{tower}.{i}.{j}", n, 0.0, tower=tower, block=f"{tower}.{i}")
        for i, block in enumerate(sizes)
        for j, n in enumerate(block)
    ]


def test_is_offered():
    assert ecoflap_register_allocators() == {"atp": Atp}


def test_equal_blocks_as_in_the_paper():
    """s_i = S − β(L − 1)/2 + βi for L blocks, here four of two layers each."""
    counts = Atp(beta=0.02)(layers([(1000, 3000)] * 4), 4800)
    expected = [n * (1 - (0.7 - 0.02 * 3 / 2 + 0.02 * i)) for i in range(4) for n in (1000, 3000)]
    assert counts == pytest.approx(expected, abs=1e-9)


def test_each_tower_has_a_progression_of_its_own():
    groups = [*layers([(1000,)] * 3, "vision"), *layers([(2000,)] * 2)]
    assert Atp(beta=0.1)(groups, 3500) == [600, 500, 400, 1100, 900]


def test_a_group_of_several_blocks_counts_as_one():
    groups = [Group("vision", 1000, 0.0), Group("language", 1000, 0.0)]
    assert Atp(beta=0.1)(groups, 1000) == [550, 450]


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=3), min_size=1, max_size=8),
    st.sampled_from([0.2, 0.5, 0.7]),
    st.sampled_from([0.0, 0.002, 0.02]),
)
def test_sums_exactly_and_rises_with_depth(sizes, share, beta):
    groups = layers(sizes)
    total = sum(group.size for group in groups)
    keep = int(share * total)
    if not 0.15 < keep / total < 0.85:
        return  # of a few weights nearly all or nearly none; the step may be illegal there
    counts = Atp(beta)(groups, keep)
    assert sum(counts) == keep
    depth = np.repeat(np.arange(len(sizes)), [len(block) for block in sizes])
    weights = np.array([group.size for group in groups])
    mean = (depth * weights).sum() / total
    expected = weights * (keep / total - beta * (depth - mean))
    assert np.abs(np.array(counts) - expected).max() < 1


def test_no_step_is_uniform():
    groups = layers([(301, 7), (100,)])
    assert Atp(beta=0.0)(groups, 200) == Uniform()(groups, 200)


def test_a_step_too_large_is_refused_with_the_largest():
    """The paper's bound is min(2S/(L − 1), 2(1 − S)/(L − 1)), here 0.15."""
    groups = layers([(100,)] * 5)
    with pytest.raises(EcoflapError, match=r"from 0\.38 to 1\.02; at a sparsity of 0\.7 take at most 0\.15 here"):
        Atp(beta=0.16)(groups, 150)
    assert Atp(beta=0.15)(groups, 150) == [60, 45, 30, 15, 0]


def test_the_largest_step_is_that_of_the_block_that_runs_out_first():
    """Of unequal blocks the mean lies off the middle, so that one end has more room than the other."""
    groups = layers([(100,), (100,), (100,), (2000,)])
    counts = Atp(beta=0.2)(groups, 920)
    assert sum(counts) == 920
    depths, mean = np.arange(4), (100 * (0 + 1 + 2) + 2000 * 3) / 2300
    assert np.abs(np.array(counts) - [100, 100, 100, 2000] * (0.4 - 0.2 * (depths - mean))).max() < 1
    with pytest.raises(
        EcoflapError, match=r"from -0\.08478 to 0\.6652; at a sparsity of 0\.6 take at most 0\.219047 here"
    ):
        Atp(beta=0.25)(groups, 920)
    with pytest.raises(EcoflapError, match=r"take at most 0\.219047 here"):
        Atp(beta=0.22)(groups, 920)
    assert sum(Atp(beta=0.219047)(groups, 920)) == 920


def test_the_largest_step_is_told_so_that_it_is_taken():
    """Of 16 blocks it is 0.5 / 7.5 = 0.0666…, and 0.06667 would be refused again."""
    groups = layers([(100,)] * 16)
    with pytest.raises(EcoflapError, match=r"take at most 0\.066666 here"):
        Atp(beta=0.1)(groups, 800)
    assert sum(Atp(beta=0.066666)(groups, 800)) == 800


@pytest.mark.parametrize("beta", [-0.1, 1.5, float("nan")])
def test_beta_is_a_difference_of_sparsities(beta):
    with pytest.raises(EcoflapError, match="beta is"):
        Atp(beta)
