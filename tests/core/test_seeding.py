"""Every global generator follows from a seed for a while, and is as it was afterwards."""

import random

import numpy as np
import pytest
import torch

from ecoflap.core.seeding import seeded

DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_what_is_drawn_follows_from_the_seed_alone(draw):
    with seeded(2**62 + 5):
        first = draw()
    draw()
    with seeded(2**62 + 5):
        assert draw() == first
    with seeded(7):
        assert draw() != first


@pytest.mark.parametrize("draw", [DRAWS["torch"], DRAWS["numpy"]])  # beartype, by which tests run, draws from Python's
def test_the_callers_own_numbers_go_on(draw):
    torch.manual_seed(1), np.random.seed(1)
    expected = [draw(), draw()]
    torch.manual_seed(1), np.random.seed(1)
    found = [draw()]
    with seeded(3):
        draw()
    assert [*found, draw()] == expected
