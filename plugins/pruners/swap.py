"""The pruner ``swap`` exchanges kept weights of another pruner's mask for pruned ones of the same row, one by one.

    δ = X̂ − W,  c = δG,  change(p, q) = 2v_p·c_p + v_p²·G_pp − 2v_q·c_q + v_q²·G_qq − 2v_p·v_q·G_pq

is by how much the squared output error changes where p comes back and q goes. The pair with the least is swapped, as
long as that is below zero. Zimmer, Roux, Wagner, Hendrych & Pokutta, SparseSwaps: Tractable LLM Pruning Mask Refinement
at Scale, 2025. The paper tries every pair, and its kept weights are dense ones. Here those ``candidates`` of a row that
would gain most by coming back alone are tried with every weight that could go, which is every pair where it is null;
and v is the value that the inner pruner gave a kept weight, or the dense one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Pattern
from ecoflap.core.budget.select import kept_only
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.errors import refuse_below_one
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.inner import changes_weights, held_by, looks_at_dense, needs_with
from ecoflap.plugins.pruners.shared.mended import mended
from ecoflap.plugins.pruners.shared.normalized_gram import NormalizedGram
from ecoflap.plugins.pruners.wanda import Wanda

_AT_ONCE = 1 << 20  # pairs that are looked at together: 4 MB, about what stays in a cache
_AT_ONCE_ON_GPU = 1 << 26  # 256 MB: fewer would leave a GPU with nothing but calls
_NOISE = 1e-6  # of a row's Σ v²: a smaller gain may be nothing but float32's rounding


@dataclass(frozen=True)
class Swap:
    """Keep as many weights in each row as the inner pruner, others where that lowers the output error.

    No weight gets a new value: one that comes back has its dense one, and one that is zero by then does not come back.
    With a pattern, both are of one run. With fewer tokens than inputs the inner pruner's mask stays, and
    ``Pruned.notes`` says so.

    :param inner: Chooses the mask to begin with.
    :param swaps: How many are made at most in each row.
    :param candidates: How many pruned weights of a row are tried at a time; null for all. A pattern tries all anyway.
    """

    inner: Pruner = field(default_factory=Wanda)
    swaps: int = 30
    candidates: int | None = 8

    def __post_init__(self) -> None:
        refuse_below_one("swaps", self.swaps)
        if self.candidates is not None:
            refuse_below_one("candidates", self.candidates)

    @property
    def needs(self) -> tuple[type[Any], ...]:
        return needs_with(self.inner, Gram)

    @property
    def dense_weights(self) -> bool:
        return looks_at_dense(self.inner)

    @property
    def changes_weights(self) -> bool:
        return changes_weights(self.inner)

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count a second Gram matrix and what is made of the weights, or what the inner pruner holds if it is more."""
        return max(inputs**2 + 20 * outputs * inputs, held_by(self.inner, outputs, inputs))

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        mend = partial(self._swapped, budget)
        return mended(self.inner, weight, seen, budget, layer, mend, "swap")

    def _swapped(self, budget: Budget, weight: Float[Tensor, "out in"], before: Pruned, gram: NormalizedGram) -> Pruned:
        rows = _Rows(gram, weight, before)
        active = torch.arange(len(weight), device=weight.device)
        for _ in range(self.swaps):
            pairs = [self._best(rows, some, budget) for some in active.split(self._rows_at_once(weight, budget))]
            if pairs:
                active = rows.swap(active, *(torch.cat(found) for found in zip(*pairs, strict=True)))
        return Pruned(rows.mask, kept_only(torch.where(rows.untouched, before.weight, weight), rows.mask))

    def _rows_at_once(self, weight: Float[Tensor, "out in"], budget: Budget) -> int:
        inputs = weight.shape[1]
        tried = budget.m if isinstance(budget, Pattern) else min(self.candidates or inputs, inputs)
        return max(1, (_AT_ONCE_ON_GPU if weight.is_cuda else _AT_ONCE) // max(inputs * tried, 1))

    def _best(
        self, rows: "_Rows", some: Int64[Tensor, " some"], budget: Budget
    ) -> tuple[Float32[Tensor, " some"], Int64[Tensor, " some"], Int64[Tensor, " some"]]:
        """Give each row's best swap: the change of its error, which weight comes back, and which goes."""
        return rows.best_in_runs(some, budget.m) if isinstance(budget, Pattern) else rows.best(some, self.candidates)


class _Rows:
    """Holds the rows of a layer while weights are swapped, scaled so that G has a unit diagonal.

    :ivar untouched: True for weights that have been kept from the beginning.
    :ivar zero: True for weights that have nothing to come back with.
    """

    def __init__(self, gram: NormalizedGram, weight: Float[Tensor, "out in"], before: Pruned) -> None:
        self.matrix = gram.matrix
        self.dense, self.zero = gram.scaled(weight), weight == 0
        self.mask, self.untouched = before.mask.clone(), before.mask.clone()
        kept = gram.scaled(before.weight)
        self.values = torch.where(self.mask, kept, self.dense)
        self.pull = (kept * self.mask - self.dense) @ gram.matrix  # c of the formula
        self.noise = _NOISE * self.values.square().sum(1)

    def _changes(self, some: Int64[Tensor, " some"]) -> tuple[Float32[Tensor, "some in"], Float32[Tensor, "some in"]]:
        """Give the change of the error as each weight alone comes back, and as each goes; infinite where it cannot."""
        values, mask = self.values[some], self.mask[some]
        squares, linear = values.square(), 2 * values * self.pull[some]
        back = mask | self.zero[some]
        return (squares + linear).masked_fill_(back, torch.inf), (squares - linear).masked_fill_(~mask, torch.inf)

    def best(
        self, some: Int64[Tensor, " some"], candidates: int | None
    ) -> tuple[Float32[Tensor, " some"], Int64[Tensor, " some"], Int64[Tensor, " some"]]:
        back, gone = self._changes(some)
        inputs, values = back.shape[1], self.values[some]
        alone, tried = back.topk(min(candidates or inputs, inputs), dim=1, largest=False)
        change = self.matrix[tried].mul_(values[:, None]).mul_(-2 * values.gather(1, tried)[:, :, None])
        change.add_(gone[:, None]).add_(alone[:, :, None])
        least, at = change.flatten(1).min(1)
        return least, tried.gather(1, (at // inputs)[:, None])[:, 0], at % inputs

    def best_in_runs(
        self, some: Int64[Tensor, " some"], m: int
    ) -> tuple[Float32[Tensor, " some"], Int64[Tensor, " some"], Int64[Tensor, " some"]]:
        back, gone = (change.unflatten(1, (-1, m)) for change in self._changes(some))
        values = self.values[some].unflatten(1, (-1, m))
        runs = torch.arange(back.shape[1], device=back.device)
        own = self.matrix.unflatten(0, (-1, m)).unflatten(2, (-1, m))[runs, :, runs]  # of each run, m × m
        change = (-2 * values[..., :, None] * values[..., None, :]).mul_(own)
        change.add_(back[..., :, None]).add_(gone[..., None, :])
        least, at = change.flatten(1).min(1)
        first = at // m**2 * m
        return least, first + at // m % m, first + at % m

    def swap(
        self,
        active: Int64[Tensor, " active"],
        change: Float32[Tensor, " active"],
        back: Int64[Tensor, " active"],
        gone: Int64[Tensor, " active"],
    ) -> Int64[Tensor, " fewer"]:
        """Swap where the error falls, and give the rows that were swapped in."""
        better = change < -self.noise[active]
        active, back, gone = active[better], back[better], gone[better]
        came, went = self.values[active, back], self.values[active, gone]
        self.pull[active] += came[:, None] * self.matrix[back] - went[:, None] * self.matrix[gone]
        self.mask[active, back], self.mask[active, gone] = True, False
        self.untouched[active, gone] = False
        self.values[active, gone] = self.dense[active, gone]
        return active


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"swap": Swap}
