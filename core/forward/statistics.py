"""What pruners need to know of a layer's inputs, in as little memory as it can be known.

Both sums come out the same, within float32's rounding, however the tokens are cut into calls.
"""

from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

_CACHED = 1 << 16  # elements: 256 kB of float32, so that a square is summed while it is still in the core's cache
_ROWS = 512  # enough for a matrix product at full speed


class ColumnNorm:
    """Σ x² of each input over all tokens: Wanda's ‖X_j‖₂², squared.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._sum = torch.zeros(in_features, dtype=torch.float64)

    @property
    def squared(self) -> Float32[Tensor, " in"]:
        return self._sum.float()

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        self.tokens += len(rows)
        # On a GPU every piece is a kernel launch; there is no cache to stay in.
        step = max(1, len(rows) if rows.is_cuda else _CACHED // self.in_features)
        for some in rows.split(step):
            self._sum += some.float().square().sum(0)

    def merge(self, other: "ColumnNorm") -> None:
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum.device)

    def to(self, device: torch.device | str) -> "ColumnNorm":
        self._sum = self._sum.to(device)
        return self


class Gram:
    """Σ x xᵀ over all tokens: the Hessian, up to a factor, of a layer's squared output error.

    Tokens are gathered until there are enough for one product. The products are then the same however the tokens came.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self.factors: dict[Any, Any] = {}
        """What a pruner derived from the matrix, under a key of its own; forgotten when inputs are added."""
        self.notes: list[str] = []
        """Sentences on what was derived, for the run's log; forgotten likewise."""
        self._sum = torch.zeros(in_features, in_features)
        self._waiting = torch.zeros(_ROWS, in_features)
        self._waits = 0

    @property
    def matrix(self) -> Float32[Tensor, "in in"]:
        waiting = self._waiting[: self._waits]
        return torch.addmm(self._sum, waiting.T, waiting)

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        self._changed(len(rows))
        while len(rows):
            some = rows[: _ROWS - self._waits]
            self._waiting[self._waits : self._waits + len(some)] = some
            self._waits += len(some)
            rows = rows[len(some) :]
            if self._waits == _ROWS:
                self._sum.addmm_(self._waiting.T, self._waiting)
                self._waits = 0

    def merge(self, other: "Gram") -> None:
        self._changed(other.tokens)
        self._sum += other.matrix.to(self._sum.device)

    def to(self, device: torch.device | str) -> "Gram":
        if torch.device(device) != self._sum.device:
            self._sum, self._waiting = self._sum.to(device), self._waiting.to(device)
            self.factors.clear()
        return self

    def _changed(self, tokens: int) -> None:
        self.tokens += tokens
        self.factors.clear()
        self.notes.clear()
