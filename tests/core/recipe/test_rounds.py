"""The shares of rounds against the formula in decimals, and the recipe that a round is."""

from decimal import Decimal, getcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.recipe.rounds import recipe_of_round, shares_of_rounds
from ecoflap.core.registry.registry import load_registry

getcontext().prec = 40


@given(st.integers(1, 100), st.integers(1, 99))
def test_each_round_leaves_the_same_part_of_what_is_left(rounds, percent):
    shares = shares_of_rounds(rounds, percent / 100)
    assert len(shares) == rounds
    assert shares[-1] == percent / 100
    left = 1 - Decimal(percent) / 100
    for number, share in enumerate(shares, 1):
        exact = 1 - (left.ln() * number / rounds).exp()
        assert abs(Decimal(str(share)) - exact) <= Decimal("5.001e-7")
    assert list(shares) == sorted(shares)


def test_no_rounds_and_a_list():
    assert shares_of_rounds(None, 0.5) == (0.5,)
    assert shares_of_rounds((0.1, 0.5), 0.5) == (0.1, 0.5)
    assert shares_of_rounds(3, 0.0) == (0.0, 0.0, 0.0)


@pytest.fixture
def recipe():
    return parse_recipe(
        {
            "version": 1, "model": "./m", "sparsity": 0.75, "rounds": 2, "prune": "magnitude",
            "calibration": {"use": "text", "samples": 2}, "refine": "reconstruct",
            "towers": {
                "vision": {"sparsity": 0.36, "refine": ["reconstruct"]}, "text": {"prune": "wanda"}, "q": "keep",
            },
        },
        registry=load_registry(),
    )  # fmt: skip


def test_a_round_is_a_recipe_with_its_own_shares_and_without_refiners(recipe):
    one = recipe_of_round(recipe, 1)
    assert (one.sparsity, one.towers["vision"].sparsity, one.towers["text"].sparsity) == (0.5, 0.2, None)
    assert one.towers["q"] == "keep"
    assert one.towers["text"].prune == recipe.towers["text"].prune
    assert one.refine == ()
    assert one.towers["vision"].refine is None
    assert recipe_of_round(recipe, 2) is recipe
