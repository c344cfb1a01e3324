"""Train a view's weights by Adam, with a learning rate that falls along a cosine."""

from math import cos, pi

import torch

from ecoflap.core.errors import EcoflapError
from ecoflap.core.refining.views import RefinedView


def descend(view: RefinedView, steps: int, batches: int, learning_rate: float) -> None:
    """Take so many steps down the view's objective, each on the next few of its training batches, in their order.

    The rate of step k of n is ½ · (1 + cos(π k / n)) of the first one's. Nothing is drawn at random.

    :param batches: How many each step looks at.
    """
    # β₂ of .95 forgets within twenty steps: there are a few dozen, and .999 would still look at the first one's.
    optimiser = torch.optim.Adam(view.parameters, lr=learning_rate, betas=(0.9, 0.95))
    numbers = view.training
    for step in view.steps(steps, optimiser):
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + cos(pi * step / steps)) / 2
        optimiser.zero_grad(set_to_none=True)
        places = range(step * batches, (step + 1) * batches)
        view.add_gradients([numbers[place % len(numbers)] for place in places], 1 / batches)
        optimiser.step()


def check_positive(**parameters: int | float) -> None:
    """Refuse parameters that are not above zero, or infinite, by name."""
    wrong = [
        f"{name} should be a finite number above 0, not {value}"
        for name, value in parameters.items()
        if not 0 < value < float("inf")
    ]
    if wrong:
        raise EcoflapError(*wrong)
