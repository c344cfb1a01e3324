"""The Cholesky factor of the inverse of a damped Gram matrix, by which SparseGPT chooses and corrects.

    H = Σ x xᵀ + λ·mean(diag)·I,   H⁻¹ = UᵀU with U upper triangular

Frantar & Alistarh, ICML 2023, factorise H, invert it and factorise again; with H = VVᵀ and V upper triangular, U is V⁻¹
at once.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.gram import Gram

_ROWS = 128
"""Rows of the triangular inverse that are solved for at once."""


class Pivots(NamedTuple):
    """Holds the diagonal of the factor.

    :param values: 1 / U_jj.
    :param dead: True for inputs that were always zero.
    :param damping: The λ with which the factorisation succeeded.
    """

    values: Float32[Tensor, " in"]
    dead: Bool[Tensor, " in"]
    damping: float


class Factor(NamedTuple):
    """Holds the whole factor. All layers with the same inputs share it.

    :param follow: U_jk / U_jj in row k and column j, which is how much column k changes for column j. Lower triangular.
    """

    follow: Float32[Tensor, "in in"]
    pivots: Pivots


def refuse_damping(damping: float) -> None:
    """Refuse a λ that is no share of the mean diagonal."""
    if not 0 <= damping < float("inf"):
        raise EcoflapError(f"damping is {damping}; it is a share of the mean diagonal, 0 or more")


def factor_of(gram: Gram, damping: float) -> Factor:
    """Give the factor of a statistic's matrix, which is kept with it."""

    def make() -> Factor:
        lower, pivots = _factorise(gram.matrix, damping)
        return Factor(_follow(lower), pivots)

    found: Factor = gram.cached(("sparsegpt", damping), make)
    return found


def pivots_of(gram: Gram, damping: float) -> Pivots:
    """Give the diagonal alone, which is kept with the statistic; it takes no inverse."""
    found: Pivots = gram.cached(("pivots", damping), lambda: _factorise(gram.matrix, damping)[1])
    return found


def _factorise(matrix: Float32[Tensor, "in in"], damping: float) -> tuple[Float32[Tensor, "in in"], Pivots]:
    """Factorise H = VVᵀ, with a λ ten times larger after every failure; flipped along both axes the first is V."""
    diagonal = matrix.diagonal().clone()
    dead = diagonal == 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    for tried in (damping, *(max(damping, 1e-3) * 10**i for i in range(1, 6))):
        # A dead input gets an ordinary diagonal; its row and column are zero, so nothing else changes.
        damped = torch.where(dead, mean, diagonal) + tried * mean
        flipped = matrix.flip(0, 1)
        flipped.diagonal().copy_(damped.flip(0))
        lower, failed = torch.linalg.cholesky_ex(flipped)
        del flipped  # each matrix that is not held is memory that pruning does without
        pivots = lower.diagonal().flip(0)
        # A pivot that is zero but for rounding is a failure too, which LAPACK does not report.
        if not failed and bool((pivots.square() > torch.finfo(pivots.dtype).eps * damped).all()):
            return lower, Pivots(pivots, dead, tried)
    raise EcoflapError(
        f"the Gram matrix of this layer's inputs cannot be factorised, even at damping {tried:g}. See whether the "
        "calibration data make the inputs infinite or NaN, or go by wanda"
    )


def _follow(lower: Float32[Tensor, "in in"]) -> Float32[Tensor, "in in"]:
    """Compute (V / diag V)⁻¹, which is U / diag U by rows, from the Cholesky factor of the flipped matrix.

    Flipped along both axes, that factor is V.
    """
    lower.div_(lower.diagonal().clone())
    inverse = torch.zeros_like(lower)
    for start in range(0, len(lower), _ROWS):  # by blocks of rows, which takes half the time of all at once
        rows = slice(start, start + _ROWS)
        corner = lower[rows, rows]
        identity = torch.eye(len(corner), device=lower.device)
        inverse[rows, rows] = torch.linalg.solve_triangular(corner, identity, upper=False, unitriangular=True)
        inverse[rows, :start] = -inverse[rows, rows] @ (lower[rows, :start] @ inverse[:start, :start])
    return inverse.flip(0, 1).T.contiguous()
