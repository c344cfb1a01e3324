"""The pruner ``sparsegpt`` removes weights column by column and lets the columns after make up for what is lost.

    H = Σ x xᵀ + λ·mean(diag)·I,   H⁻¹ = UᵀU with U upper triangular
    metric_ij = (w_ij / U_jj)²,   and for each w_ij that goes   w_ik −= w_ij · U_jk / U_jj   for all k > j

Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023, Algorithm 1,
which is Optimal Brain Surgeon with one order of the columns for all rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.budget.select import best_of_columns, check_finite, check_fits, is_finite, select
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.inverse_factor import Factor, factor_of, refuse_damping

_STEP = 32
"""Columns that are updated one by one before a matrix product brings those after them up to date."""


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
        refuse_damping(self.damping)
        refuse_below_one("block_size", self.block_size)

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        check_fits(budget, *weight.shape)
        factor = factor_of(seen[Gram], self.damping)
        columns = _Columns(weight.detach(), factor)
        for start, stop, share in self._blocks(weight.shape[1], budget):
            columns.prune_block(start, stop, share)
        return Pruned(*columns.result(weight.dtype), self._notes(factor))

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the factor and what it is made of, and of the weights their values, what they lost and which go."""
        return 3 * inputs**2 + 7 * outputs * inputs

    def _notes(self, factor: Factor) -> tuple[str, ...]:
        used = factor.pivots.damping
        if used == self.damping:
            return ()
        return (f"SparseGPT needed damping {used:g} instead of {self.damping:g}",)

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
        self.factor = factor
        self.now = weight.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        zeros = self.now == 0
        self.zeros = zeros if bool(zeros.any()) else None
        if bool(factor.pivots.dead.any()):
            self.now.masked_fill_(factor.pivots.dead[:, None], 0)
        self.lost = torch.empty_like(self.now)  # of the finished columns, the values that were pruned
        self.goes = torch.empty_like(self.now)  # of the chosen columns, 1 for each weight that is pruned

    def prune_block(self, start: int, stop: int, share: Budget) -> None:
        """Prune the columns from ``start`` up to ``stop``, all columns before them being finished."""
        self._update(0, start, stop)
        if isinstance(share, Keep):
            self._choose(start, stop, share)
        step = share.m if isinstance(share, Pattern) else _STEP
        of_columns = [held[start:stop].unbind() for held in (self.now, self.lost, self.goes, self.factor.follow)]
        columns = list(zip(*of_columns, strict=True))  # once a block: to take one out costs as much as to compute on it
        for first in range(start, stop, step):
            last = min(first + step, stop)
            self._update(start, first, last)
            if isinstance(share, Pattern):
                self._choose(first, last, share)
            self._prune(first, columns[first - start : last - start])
        if isinstance(share, Pattern):  # of all runs at once: NaN and infinity stay in what is kept or what was lost
            check_finite((self.now[start:stop] + self.lost[start:stop]) * self.factor.pivots.values[start:stop, None])

    def _update(self, start: int, first: int, last: int) -> None:
        """Let the columns from ``first`` up to ``last`` make up for what those from ``start`` up to ``first`` lost."""
        if start < first:
            self.now[first:last].addmm_(self.factor.follow[first:last, start:first], self.lost[start:first], alpha=-1)

    def _metric(self, first: int, last: int) -> Float[Tensor, "some out"]:
        # The paper's metric is the square of this one, which gives the same order but may overflow.
        metric = (self.now[first:last] * self.factor.pivots.values[first:last, None]).abs_()
        # Weights that are zero go before those of a dead input, whose metric is 0 too.
        return metric if self.zeros is None else metric.masked_fill_(self.zeros[first:last], -1)

    def _choose(self, first: int, last: int, share: Budget) -> None:
        metric = self._metric(first, last)
        # Of a pattern it is the one run of each row, for which select would look at more.
        kept = best_of_columns(metric, share.n) if isinstance(share, Pattern) else select(metric.T, share, "layer").T
        torch.logical_not(kept, out=self.goes[first:last])

    def _prune(self, first: int, columns: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        """Prune one column after the other, each updated from those before it since ``first``.

        :param columns: Of each, what it is now, what it has lost, which go, and how it follows those before it.
        """
        last = first + len(columns)
        lost = self.lost[first:last]
        for j, (now, gone, goes, follow) in enumerate(columns):
            if j:
                now.addmv_(lost[:j].T, follow[first : first + j], alpha=-1)
            torch.mul(now, goes, out=gone)
        self.now[first:last].sub_(lost)

    def result(self, dtype: torch.dtype) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]:
        """Give the mask and the weight in a type.

        :raises EcoflapError: Where an updated weight is beyond the type's range.
        """
        mask = self.goes.T.logical_not()
        weight = self.now.T.to(dtype, memory_format=torch.contiguous_format)
        if not is_finite(weight):
            raise EcoflapError(f"SparseGPT's updated weights do not fit {dtype}: raise damping, or use float32")
        return mask.contiguous(), weight


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"sparsegpt": SparseGPT}
