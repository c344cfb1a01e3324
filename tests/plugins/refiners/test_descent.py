"""The descent: which batches it looks at, and that its rate is of a weight's length and falls along a cosine."""

from math import cos, pi

import pytest
import torch
from torch import nn

from ecoflap.core.errors import EcoflapError
from ecoflap.core.refining.views import RefinedView
from ecoflap.plugins.refiners.shared.descent import Descent, check_positive, kept_length


class Bowl(RefinedView):
    """½‖w − t‖², the same for each batch, which are noted."""

    training = (4, 7, 9)

    def __init__(self):
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.looked_at = []

    @property
    def parameters(self):
        return [self.weight]

    def add_gradient(self, number, share=1.0):
        self.looked_at.append((number, share))
        error = self.weight.square().sum() / 2
        (error * share).backward()
        return float(error.detach())


def adam(weight, steps, rate):
    """Kingma & Ba's algorithm 1 with β₁ = .9, β₂ = .95, in float64."""
    w = weight.double()
    m = v = torch.zeros_like(w)
    for step in range(steps):
        g = w
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        lr = rate * (1 + cos(pi * step / steps)) / 2
        w = w - lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize(
    ("rate", "first"),
    [
        ({"relative_rate": 0.1, "learning_rate": 0.3}, 0.3),
        ({"relative_rate": 0.1}, 0.1 * ((1 + 4 + 9) / 3) ** 0.5),
    ],
)
def test_is_adam_under_a_cosine(rate, first):
    bowl = Bowl()
    before = bowl.weight.detach().clone()
    Descent(5, 2, **rate).train(bowl)
    torch.testing.assert_close(bowl.weight.detach().double(), adam(before, 5, first), rtol=1e-5, atol=1e-6)


def test_batches_come_in_turn_and_share_a_step():
    bowl = Bowl()
    Descent(4, 2, 0.1).train(bowl)
    assert [number for number, _ in bowl.looked_at] == [4, 7, 9, 4, 7, 9, 4, 7]
    assert {share for _, share in bowl.looked_at} == {0.5}


def test_a_relative_rate_knows_no_unit():
    """What is a thousand times as long goes a thousand times as far."""
    small, large = Bowl(), Bowl()
    large.weight.data.mul_(1000)
    for bowl in (small, large):
        Descent(6, 1, 0.2).train(bowl)
    torch.testing.assert_close(large.weight.detach() / 1000, small.weight.detach(), rtol=1e-4, atol=1e-6)


def test_a_gentler_one_has_a_quarter_of_the_rate_that_it_goes_by():
    assert Descent(4, 2, 0.1).gentler() == Descent(4, 2, 0.025)
    assert Descent(4, 2, 0.1, learning_rate=0.4).gentler() == Descent(4, 2, 0.1, learning_rate=0.1)


def test_what_is_pruned_does_not_count_in_a_length():
    assert kept_length(torch.tensor([[3.0, 0.0], [0.0, -5.0]])) == pytest.approx(17**0.5)
    assert kept_length(torch.tensor([[3.0, 0.0]], dtype=torch.bfloat16)) == 3.0
    assert kept_length(torch.zeros(2, 2)) == 0.0


def test_what_is_not_positive_is_named():
    with pytest.raises(EcoflapError) as told:
        check_positive(steps=0, batches=1, learning_rate=float("nan"), rate=float("inf"))
    assert told.value.problems == (
        "steps should be a finite number above 0, not 0",
        "learning_rate should be a finite number above 0, not nan",
        "rate should be a finite number above 0, not inf",
    )
