"""Train a view's weights by Adam, each matrix at a rate of its own, that falls along a cosine."""

from dataclasses import dataclass, fields, replace
from math import cos, pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.errors import EcoflapError
from ecoflap.core.refining.views import RefinedView


@dataclass(frozen=True)
class Descent:
    """Parameters of refiners that train with Adam; each refiner sets its own defaults.

    :param steps: How many steps of Adam it takes.
    :param batches: How many calibration batches each step looks at.
    :param relative_rate: How far the first step moves a weight, as a share of the root mean square of what is kept of
        its matrix; it falls along a cosine. Adam's steps are of a length of their own, whatever the weights' is, and of
        one model's matrices some are twenty times as large as others (Shazeer & Stern, Adafactor, 2018, section 8).
    :param learning_rate: Takes its place where it is set: one for all matrices, as most papers have it.
    """

    steps: int
    batches: int
    relative_rate: float
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        numbers = {field.name: getattr(self, field.name) for field in fields(Descent)}
        check_positive(**{name: number for name, number in numbers.items() if number is not None})

    def gentler(self) -> "Descent":
        """Give the same with a quarter of the rate."""
        if self.learning_rate is not None:
            return replace(self, learning_rate=self.learning_rate / 4)
        return replace(self, relative_rate=self.relative_rate / 4)

    def rate_of(self, weight: Float[Tensor, "..."]) -> float:
        """Give the first step's rate for a matrix, or for those that are in one parameter."""
        return self.relative_rate * kept_length(weight) if self.learning_rate is None else self.learning_rate

    def train(self, view: RefinedView) -> None:
        """Take the steps down the view's objective, each on the next few of its training batches, in their order.

        The rate of step k of n is ½ · (1 + cos(π k / n)) of the first one's. Nothing is drawn at random.
        """
        rates = [self.rate_of(weight.detach()) for weight in view.parameters]
        # β₂ of .95 forgets within twenty steps: there are a few dozen, and .999 would still look at the first one's.
        # A fused step takes a tenth of the time on a CPU, where the other is a dozen passes over each tensor.
        groups = [{"params": [weight]} for weight in view.parameters]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
        numbers = view.training
        for step in view.steps(self.steps, optimiser):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + cos(pi * step / self.steps)) / 2
            optimiser.zero_grad(set_to_none=True)
            places = range(step * self.batches, (step + 1) * self.batches)
            view.add_gradients([numbers[place % len(numbers)] for place in places], 1 / self.batches)
            optimiser.step()


def kept_length(weight: Float[Tensor, "..."]) -> float:
    """Give the root mean square of what is not zero; 0 where all is."""
    kept = int(torch.count_nonzero(weight))
    return float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / sqrt(kept) if kept else 0.0


def check_positive(**parameters: int | float) -> None:
    """Refuse parameters that are not above zero, or infinite, by name."""
    wrong = [
        f"{name} should be a finite number above 0, not {value}"
        for name, value in parameters.items()
        if not 0 < value < float("inf")
    ]
    if wrong:
        raise EcoflapError(*wrong)
