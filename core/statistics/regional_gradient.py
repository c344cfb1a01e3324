"""The statistic ``RegionalGradient``: the root mean square of the gradients of a block's own output, for Wanda++."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ecoflap.core.errors import ModelError


class RegionalGradient:
    """Takes √(1/N Σ_n (∂‖f(x_n)‖₂/∂W)²): how far each weight moves the norm of its own block's output, over N samples.

    It is the regional gradient score of Wanda++ (Yang et al., 2025): a backward through one block, never the whole
    model. f(x_n) is the block's output at the real tokens of sample n.

    :param in_features: The length of one input; the gradient has the weight's shape.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.samples = 0
        self._sum: Tensor | None = None

    @property
    def magnitude(self) -> Float32[Tensor, "out in"]:
        """Give the root mean square of the samples' gradients."""
        if self._sum is None:
            raise ModelError("no gradient has reached this layer: its block's output does not depend on it")
        return (self._sum / self.samples).sqrt()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Do nothing: this statistic is of gradients, and of no inputs."""

    def add_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one sample's gradient."""
        squared = gradient.detach().float().square()
        self._sum = squared if self._sum is None else self._sum.add_(squared)
        self.samples += 1

    def merge(self, other: "RegionalGradient") -> None:
        """Add the samples of another."""
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum.to(self._sum.device))
        self.samples += other.samples

    def to(self, device: torch.device | str) -> "RegionalGradient":
        """Move the sum."""
        self._sum = None if self._sum is None else self._sum.to(device)
        return self
