"""The statistic ``ColumnNorm``: ‖X_j‖₂² of each input of a layer, which Wanda scores by.

Sums over tokens come out the same, within float32's rounding, however the tokens are cut into calls. The engine has
one for each span of the batches and merges them in order, so that their bits do not depend on which process saw which;
so it does with any other statistic.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

_CACHED = 1 << 16  # elements: 256 kB of float32, so that a square is summed while it is still in the core's cache


class ColumnNorm:
    """Sums x² of each input over all tokens: the square of Wanda's ‖X_j‖₂.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._sum = torch.zeros(in_features, dtype=torch.float64)

    @property
    def squared(self) -> Float32[Tensor, " in"]:
        """Give Σ x² over the tokens that were added, for each input, in its unit squared; a new tensor each time."""
        return self._sum.float()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        """Add the squares of some tokens' inputs; each counts once, whatever axes they lie along."""
        rows = inputs.detach().reshape(-1, self.in_features)
        self.tokens += len(rows)
        # On a GPU every piece is a kernel launch; there is no cache to stay in.
        step = max(1, len(rows) if rows.is_cuda else _CACHED // self.in_features)
        for some in rows.split(step):
            self._sum += some.to(torch.float32, copy=True).square_().sum(0)  # another tensor would be other memory

    def merge(self, other: "ColumnNorm") -> None:
        """Add the sum of another, taken over other tokens."""
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "ColumnNorm":
        """Move the sum to a device, in place, and return itself."""
        self._sum = self._sum.to(device)
        return self
