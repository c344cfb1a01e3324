"""The pruner ``sparsegpt`` removes weights column by column and lets the columns after make up for what is lost.

    H = Σ x xᵀ + λ·mean(diag)·I,   H⁻¹ = UᵀU with U upper triangular
    metric_ij = (w_ij / U_jj)²,   and for each w_ij that goes   w_ik −= w_ij · U_jk / U_jj   for all k > j

Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023, Algorithm 1,
which is Optimal Brain Surgeon with one order of the columns for all rows. The paper factorises H, inverts it and
factorises again; with H = VVᵀ and V upper triangular, U is V⁻¹ at once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.budget.select import check_fits, is_finite, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.forward.statistics import Gram

_ROWS = 128
"""Rows of the triangular inverse that are solved for at once."""
_STEP = 32
"""Columns that are updated one by one before a matrix product brings those after them up to date."""


class Factor(NamedTuple):
    """Holds what SparseGPT derives from a Gram matrix. All layers with the same inputs share it.

    :param follow: U_jk / U_jj in row k and column j, which is how much column k changes for column j. Lower triangular.
    :param pivots: 1 / U_jj.
    :param dead: True for inputs that were always zero.
    :param damping: The λ with which the factorisation succeeded.
    """

    follow: Float32[Tensor, "in in"]
    pivots: Float32[Tensor, " in"]
    dead: Bool[Tensor, " in"]
    damping: float


@dataclass(frozen=True)
class SparseGPT:
    """In every block of columns, keep the largest (w_ij / U_jj)² over all rows, with w as updated until then.

    A count is divided among the blocks of columns in proportion to their width. A pattern keeps n of every m columns,
    row by row. The factor is kept with the statistic, for the other layers that share the inputs.

    :param damping: λ, the share of H's mean diagonal that is added to the diagonal. Where the factorisation fails, λ is
        raised tenfold until it succeeds, and ``Pruned.notes`` says so.
    :param block_size: How many columns have their weights chosen together; rounded to a multiple of a pattern's m.
    """

    damping: float = 0.01
    block_size: int = 128
    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise EcoflapError(f"damping is {self.damping}; it is a share of the mean diagonal, 0 or more")
        refuse_below_one("block_size", self.block_size)

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        check_fits(budget, *weight.shape)
        factor = self._factor(seen[Gram])
        columns = _Columns(weight.detach(), factor)
        for start, stop, share in self._blocks(weight.shape[1], budget):
            columns.prune_block(start, stop, share)
        return Pruned(*columns.result(weight.dtype), self._notes(factor))

    def _factor(self, gram: Gram) -> Factor:
        key = ("sparsegpt", self.damping)
        found: Factor = gram.cached(key, lambda: _factorise(gram.matrix, self.damping))
        return found

    def _notes(self, factor: Factor) -> tuple[str, ...]:
        if factor.damping == self.damping:
            return ()
        return (f"SparseGPT needed damping {factor.damping:g} instead of {self.damping:g}",)

    def _blocks(self, columns: int, budget: Budget) -> Iterator[tuple[int, int, Budget]]:
        """Yield where each block of columns begins and ends, and its share of the budget; shares sum to it exactly."""
        size = self.block_size
        if isinstance(budget, Pattern):
            size = max(size // budget.m, 1) * budget.m
        for start in range(0, columns, size):
            stop = min(start + size, columns)
            if isinstance(budget, Pattern):
                yield start, stop, budget
            else:
                yield start, stop, Keep(budget.count * stop // columns - budget.count * start // columns)


class _Columns:
    """Holds a weight while it is pruned, transposed so that each of its columns is contiguous."""

    def __init__(self, weight: Float[Tensor, "out in"], factor: Factor) -> None:
        self.weight = weight
        self.has_zeros = bool((weight == 0).any())
        self.factor = factor
        self.now = weight.T.float().masked_fill(factor.dead[:, None], 0).contiguous()
        self.lost = torch.empty_like(self.now)  # of the finished columns, the values that were pruned
        self.kept = torch.empty_like(self.now)  # of the chosen columns, 1 for each weight that is kept

    def prune_block(self, start: int, stop: int, share: Budget) -> None:
        """Prune the columns from ``start`` up to ``stop``, all columns before them being finished."""
        self._update(0, start, stop)
        if isinstance(share, Keep):
            self._choose(start, stop, share)
        step = share.m if isinstance(share, Pattern) else _STEP
        for first in range(start, stop, step):
            last = min(first + step, stop)
            self._update(start, first, last)
            if isinstance(share, Pattern):
                self._choose(first, last, share)
            self._prune(first, last)

    def _update(self, start: int, first: int, last: int) -> None:
        """Let the columns from ``first`` up to ``last`` make up for what those from ``start`` up to ``first`` lost."""
        if start < first:
            self.now[first:last].addmm_(self.factor.follow[first:last, start:first], self.lost[start:first], alpha=-1)

    def _choose(self, first: int, last: int, share: Budget) -> None:
        # The paper's metric is the square of this one, which gives the same order but may overflow.
        metric = (self.now[first:last] * self.factor.pivots[first:last, None]).abs_().T
        if self.has_zeros:
            metric = zeros_first(metric, self.weight[:, first:last])
        self.kept[first:last] = select(metric, share, "layer").T

    def _prune(self, first: int, last: int) -> None:
        """Prune one column after the other, each updated from those before it since ``first``."""
        lost = self.lost[first:last]
        rows = zip(self.now[first:last], lost, self.kept[first:last], self.factor.follow[first:last], strict=True)
        for j, (now, gone, kept, follow) in enumerate(rows):
            if j:
                now.addmv_(lost[:j].T, follow[first : first + j], alpha=-1)
            torch.addcmul(now, now, kept, value=-1, out=gone)
            now.sub_(gone)

    def result(self, dtype: torch.dtype) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]:
        """Give the mask and the weight in a type.

        :raises EcoflapError: Where an updated weight is beyond the type's range.
        """
        mask = self.kept.T.bool().contiguous()
        weight = self.now.T.to(dtype, memory_format=torch.contiguous_format)
        if not is_finite(weight):
            raise EcoflapError(f"SparseGPT's updated weights do not fit {dtype}: raise damping, or use float32")
        return mask, weight


def _factorise(matrix: Float32[Tensor, "in in"], damping: float) -> Factor:
    """Factorise H + λ·mean(diag H)·I = VVᵀ, with a λ ten times larger after every failure."""
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
            return Factor(_follow(lower), pivots, dead, tried)
    raise EcoflapError(
        f"SparseGPT cannot factorise the Gram matrix of this layer's inputs, even at damping {tried:g}. See whether "
        "the calibration data make the inputs infinite or NaN, or prune with wanda"
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


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"sparsegpt": SparseGPT}
