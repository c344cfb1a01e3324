"""The statistic ``LossGradient``: the mean absolute gradient of the whole model's loss."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ecoflap.core.errors import ModelError


class LossGradient:
    """Takes 1/N Σ_n |∂L_n/∂W|: how far the loss of the whole model moves with each weight, over N batches.

    The model is what it is before anything of it is pruned: in a later round, what the round before left.

    :param in_features: The length of one input; the gradient has the weight's shape.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.batches = 0
        self._sum: Tensor | None = None

    @property
    def magnitude(self) -> Float32[Tensor, "out in"]:
        """Give the mean of the batches' absolute gradients, in main memory."""
        if self._sum is None:
            raise ModelError("no gradient has reached this layer: the model's loss does not depend on it")
        return self._sum / self.batches

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Do nothing: this statistic is of gradients, and of no inputs."""

    def sum_into(self, total: Float32[Tensor, "out in"]) -> None:
        """Take a tensor of zeros to sum into."""
        self._sum = total

    def add_loss_gradient(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one batch's gradient."""
        size = gradient.detach().float().abs()
        self._sum = size if self._sum is None else self._sum.add_(size)
        self.batches += 1

    def merge(self, other: "LossGradient") -> None:
        """Add the batches of another."""
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum.to(self._sum.device))
        self.batches += other.batches

    def to(self, device: torch.device | str) -> "LossGradient":
        """Move the sum."""
        self._sum = None if self._sum is None else self._sum.to(device)
        return self
