"""A Gram matrix with a unit diagonal, by which pruners solve: conditioned well, and made once for layers that share it.

With G = Σ x xᵀ and d_j = √G_jj = ‖X_j‖₂ it is A = D⁻¹GD⁻¹. A weight W becomes W·D, and the squared output error of a
change ΔW, which is tr(ΔW G ΔWᵀ), is that of ΔW·D by A.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.statistics.gram import Gram


class NormalizedGram(NamedTuple):
    """Holds A and what it was divided by.

    :param matrix: A, with ones on its diagonal.
    :param norms: ‖X_j‖₂ of each input.
    :param dead: True for inputs that were always zero.
    """

    matrix: Float32[Tensor, "in in"]
    norms: Float32[Tensor, " in"]
    dead: Bool[Tensor, " in"]

    def scaled(self, weight: Float[Tensor, "out in"]) -> Float32[Tensor, "out in"]:
        """Give W·D."""
        return weight.detach().float() * self.norms

    def unscaled(self, scaled: Float32[Tensor, "out in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Give the weight that was scaled, in the dtype of the dense one, whose values dead inputs have."""
        found = scaled / self.norms.masked_fill(self.dead, 1)
        return torch.where(self.dead, weight.detach().float(), found).to(weight.dtype)

    def error(self, change: Float32[Tensor, "out in"]) -> float:
        """Compute the squared output error, summed over all tokens, of a scaled change of the weight."""
        return float((change @ self.matrix).mul_(change).sum(dtype=torch.float64))


def normalized(gram: Gram, ridge: float = 0.0) -> NormalizedGram:
    """Give a statistic's normalized matrix, which is kept with it.

    :param ridge: What share of G's mean diagonal is added to that of each input before anything is divided; nothing is
        to that of an input that was always zero.
    """
    found: NormalizedGram = gram.cached(("normalized", ridge), lambda: _normalize(gram.matrix, ridge))
    return found


def _normalize(matrix: Float32[Tensor, "in in"], ridge: float) -> NormalizedGram:
    diagonal = matrix.diagonal().clamp_min(0)
    dead = diagonal == 0
    norms = (diagonal + ridge * diagonal.mean()).masked_fill_(dead, 0).sqrt()
    inverse = 1 / norms.masked_fill(dead, 1)
    matrix = matrix.mul_(inverse).mul_(inverse[:, None])
    matrix.diagonal().fill_(1)
    return NormalizedGram(matrix, norms, dead)
