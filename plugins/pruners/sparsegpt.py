"""Optimal Brain Surgeon column by column: what a pruned weight did, the columns after it take over.

Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (ICML 2023), Algorithm 1.

H = Σ x xᵀ + damping, H⁻¹ = UᵀU with U upper. Pruning w_j of a row moves the columns after it by -w_j U_jk / U_jj, and
costs (w_j / U_jj)². The paper factorises, inverts and factorises again; with H = VVᵀ, V upper, U is V⁻¹ at once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.budget.select import check_fits, is_finite, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Pruned
from ecoflap.core.errors import EcoflapError
from ecoflap.core.forward.statistics import Gram

_ROWS = 128
_STEP = 32  # columns updated one by one before a matrix product brings the next ones up to date


class Factor(NamedTuple):
    """What all layers with these inputs share.

    :param follow: U_jk / U_jj in row k and column j: by how much column k follows column j. Lower triangular.
    :param pivots: 1 / U_jj.
    :param dead: Inputs that were always zero.
    :param damping: The one that was needed.
    """

    follow: Float32[Tensor, "in in"]
    pivots: Float32[Tensor, " in"]
    dead: Bool[Tensor, " in"]
    damping: float


@dataclass(frozen=True)
class SparseGPT:
    """Within every block of columns keeps the largest (w / U_jj)², w as updated so far, over all rows jointly.

    A count is divided over the blocks of columns in proportion; a pattern keeps n of every m columns, row by row.

    :param damping: λ, the share of H's mean diagonal added to it. Raised tenfold, and said so in the run's log, where
        the factorisation fails.
    :param block_size: Columns whose weights are chosen together; rounded to a multiple of a pattern's m.
    """

    damping: float = 0.01
    block_size: int = 128
    needs: ClassVar[tuple[type[Any], ...]] = (Gram,)

    def __post_init__(self) -> None:
        if not 0 <= self.damping < float("inf"):
            raise EcoflapError(f"damping is a share of the mean diagonal, 0 or more; {self.damping} is not")
        if self.block_size < 1:
            raise EcoflapError(f"block_size is a number of columns, 1 or more; {self.block_size} is not")

    def __call__(self, weight: Float[Tensor, "out in"], statistic: Gram, budget: Budget) -> Pruned:
        check_fits(budget, *weight.shape)
        columns = _Columns(weight.detach(), self._factor(statistic))
        step = budget.m if isinstance(budget, Pattern) else _STEP
        for start, stop, share in self._blocks(weight.shape[1], budget):
            columns.update(0, start, stop)
            if isinstance(share, Keep):
                columns.choose(start, stop, share)
            for first in range(start, stop, step):
                last = min(first + step, stop)
                columns.update(start, first, last)
                if isinstance(share, Pattern):
                    columns.choose(first, last, share)
                columns.prune(first, last)
        return columns.pruned(weight.dtype)

    def _factor(self, gram: Gram) -> Factor:
        if self.damping not in gram.factors:
            factor = _factorise(gram.matrix, self.damping)
            gram.factors[self.damping] = factor
            if factor.damping != self.damping:
                gram.notes.append(f"SparseGPT needed damping {factor.damping:g} instead of {self.damping:g}")
        found: Factor = gram.factors[self.damping]
        return found

    def _blocks(self, columns: int, budget: Budget) -> Iterator[tuple[int, int, Budget]]:
        """Where each block of columns begins and ends, with its share of the budget; shares sum to it exactly."""
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
    """A weight while it is pruned, transposed so that its columns are contiguous."""

    def __init__(self, weight: Float[Tensor, "out in"], factor: Factor) -> None:
        self.weight = weight
        self.has_zeros = bool((weight == 0).any())
        self.factor = factor
        self.now = weight.T.float().masked_fill(factor.dead[:, None], 0).contiguous()
        self.lost = torch.empty_like(self.now)  # of the columns that are done: what was pruned there
        self.kept = torch.empty_like(self.now)  # 1 where it is kept

    def update(self, start: int, first: int, last: int) -> None:
        """Let columns first to last take over what columns start to first lost."""
        if start < first:
            self.now[first:last].addmm_(self.factor.follow[first:last, start:first], self.lost[start:first], alpha=-1)

    def choose(self, first: int, last: int, share: Budget) -> None:
        # The paper's metric is its square, which ranks alike but may overflow.
        metric = (self.now[first:last] * self.factor.pivots[first:last, None]).abs_().T
        if self.has_zeros:
            metric = zeros_first(metric, self.weight[:, first:last])
        self.kept[first:last] = select(metric, share, "layer").T

    def prune(self, first: int, last: int) -> None:
        """One column after the other, each updated from those of the same step before it."""
        lost = self.lost[first:last]
        rows = zip(self.now[first:last], lost, self.kept[first:last], self.factor.follow[first:last], strict=True)
        for j, (now, gone, kept, follow) in enumerate(rows):
            if j:
                now.addmv_(lost[:j].T, follow[first : first + j], alpha=-1)
            torch.addcmul(now, now, kept, value=-1, out=gone)
            now.sub_(gone)

    def pruned(self, dtype: torch.dtype) -> Pruned:
        mask = self.kept.T.bool().contiguous()
        weight = self.now.T.to(dtype, memory_format=torch.contiguous_format)
        if not is_finite(weight):
            raise EcoflapError(f"SparseGPT's updated weights do not fit {dtype}: raise damping, or use float32")
        return Pruned(mask, weight)


def _factorise(matrix: Float32[Tensor, "in in"], damping: float) -> Factor:
    """H + λ mean(diag H) I = VVᵀ, with λ ten times larger at every failure."""
    diagonal = matrix.diagonal().clone()
    dead = diagonal == 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    for tried in (damping, *(max(damping, 1e-3) * 10**i for i in range(1, 6))):
        # A dead input gets an ordinary diagonal; its row and column are zero, so nothing else changes.
        damped = torch.where(dead, mean, diagonal) + tried * mean
        flipped = matrix.clone()
        flipped.diagonal().copy_(damped)
        lower, failed = torch.linalg.cholesky_ex(flipped.flip(0, 1))
        pivots = lower.diagonal().flip(0)
        # A pivot within rounding of zero is a failure LAPACK does not see.
        if not failed and bool((pivots.square() > torch.finfo(pivots.dtype).eps * damped).all()):
            return Factor(_follow(lower), pivots, dead, tried)
    raise EcoflapError(
        f"SparseGPT: the inputs' Gram matrix cannot be factorised even at damping {tried:g}: "
        "are the inputs finite? Look at the calibration data, or prune with wanda"
    )


def _follow(lower: Float32[Tensor, "in in"]) -> Float32[Tensor, "in in"]:
    """From the Cholesky factor of the flipped matrix, whose flip is V: (V / diag V)⁻¹ is U / diag U, row by row."""
    lower = lower / lower.diagonal()
    inverse = torch.zeros_like(lower)
    for start in range(0, len(lower), _ROWS):  # forward substitution by blocks: twice as fast as on the whole
        rows = slice(start, start + _ROWS)
        corner = lower[rows, rows]
        identity = torch.eye(len(corner), device=lower.device)
        inverse[rows, rows] = torch.linalg.solve_triangular(corner, identity, upper=False, unitriangular=True)
        inverse[rows, :start] = -inverse[rows, rows] @ (lower[rows, :start] @ inverse[:start, :start])
    return inverse.flip(0, 1).T.contiguous()


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"sparsegpt": SparseGPT}
