"""The pruner ``dsnot`` exchanges weights of another pruner's mask until its rows are expected to have no error.

    ε = Σ_j (W_j − Ŵ_j)·E[x_j];   what comes back: the pruned weight with the largest sign(ε)·W_j·E[x_j] / Var[x_j]
    what goes: of the kept weights with sign(ε)·Ŵ_j·E[x_j] < 0 the one with the smallest |Ŵ_j|·‖X_j‖₂

Zhang, Zhao, Lin, Sun, Yao, Han, Tanner, Liu & Ji, Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse
LLMs, ICLR 2024. A row ends where |ε| is at most ``threshold``, or before ε changes its sign. Of a pattern the weight
that goes is the one with the smallest |Ŵ_j|·‖X_j‖₂ of the run of the one that comes. No weight is moved twice.

In their code a pattern is ranked by the metric of the inner pruner, of SparseGPT or magnitude, where here it is Wanda's
for all; that is theirs too where no pattern is asked for. There E[x_j] is a sum over a sample's tokens, averaged over
samples of 2048 tokens; here it is the mean over all tokens times 2048, so that ``threshold`` means the same for samples
of any length. Their variance is the mean of those within samples, here it is over all tokens. Their script lets ε
change its sign, as ``same_sign: false`` does here, and leaves the layers of an MLP to the inner pruner; here all are
mended. When no weight of the right sign is left, their code goes on to those of the wrong sign; here the row is done. A
kept weight counts with the value that the inner pruner gave it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from ecoflap.core.budget.counts import Budget, Pattern
from ecoflap.core.budget.select import kept_only
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Mended, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, refuse_below_one
from ecoflap.plugins.pruners.shared.inner import changes_weights, held_by, looks_at_dense, needs_with, prune_by
from ecoflap.plugins.pruners.wanda import Wanda

_TOKENS = 2048
"""Over so many tokens an expected error is summed: those of a sample in the paper."""
_CONSTANT = 1e-12
"""A variance is at least this share of the mean square, which is less than rounding leaves of a constant input."""


class ColumnMoments:
    """Sums x and x² of each input over all tokens, in float64: its mean, its variance, and Wanda's ‖X_j‖₂.

    :param in_features: The length of one input.
    :cvar takes_weights: A mean is no sum of squares, so that a token cannot count more than another one in it.
    """

    takes_weights: ClassVar[bool] = False

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self.tokens = 0
        self._sums = torch.zeros(2, in_features, dtype=torch.float64)

    @property
    def mean(self) -> Float64[Tensor, " in"]:
        return self._sums[0] / max(self.tokens, 1)

    @property
    def variance(self) -> Float64[Tensor, " in"]:
        """Give the mean squared distance from the mean."""
        return (self._sums[1] / max(self.tokens, 1) - self.mean.square()).clamp_min(0)

    @property
    def squared(self) -> Float64[Tensor, " in"]:
        """Give the sum of x²."""
        return self._sums[1]

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        self.tokens += len(rows)
        for some in rows.split(_TOKENS):
            exact = some.double()
            self._sums += torch.stack([exact.sum(0), exact.square().sum(0)])

    def merge(self, other: "ColumnMoments") -> None:
        self.tokens += other.tokens
        self._sums += other._sums.to(self._sums.device)

    def to(self, device: torch.device | str) -> "ColumnMoments":
        self._sums = self._sums.to(device)
        return self


@dataclass(frozen=True)
class Dsnot:
    """Keep as many weights in each row, and in each run of a pattern, as the inner pruner: others, for a smaller |ε|.

    No weight gets a new value: one that comes back has its dense one. It looks at two numbers for each input, never at
    how inputs go together.

    :param inner: Chooses the mask to begin with.
    :param max_cycles: How many weights of each row are exchanged at most.
    :param threshold: At which |ε| a row is left alone.
    :param same_sign: Whether a row ends before ε would change its sign, too; of a pattern it does in any case.
    """

    inner: Pruner = field(default_factory=Wanda)
    max_cycles: int = 50
    threshold: float = 0.1
    same_sign: bool = True

    def __post_init__(self) -> None:
        refuse_below_one("max_cycles", self.max_cycles)
        if not 0 <= self.threshold < float("inf"):
            raise EcoflapError(f"threshold is {self.threshold}; it is an expected error of an output, 0 or more")

    @property
    def needs(self) -> tuple[type[Any], ...]:
        return needs_with(self.inner, ColumnMoments)

    @property
    def dense_weights(self) -> bool:
        return looks_at_dense(self.inner)

    @property
    def changes_weights(self) -> bool:
        return changes_weights(self.inner)

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count what is made of the weights, or what the inner pruner holds before that, if it is more."""
        return max(20 * outputs * inputs, held_by(self.inner, outputs, inputs))

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        before = prune_by(self.inner, weight, seen, budget, layer)
        rows = _Rows(weight, before, seen[ColumnMoments], self, budget)
        first = rows.expected_error()
        for _ in range(self.max_cycles):
            if not rows.exchange():
                break
        came = rows.mask & ~before.mask
        found = kept_only(torch.where(came, weight, before.weight), rows.mask)
        mended = (*before.mended, Mended("dsnot", first, rows.expected_error(), True))
        return before._replace(mask=rows.mask, weight=found, mended=mended)


class _Ranked(NamedTuple):
    """Holds the first weights of each row by some order: those that would lower ε above those that would raise it.

    :param at: Their inputs.
    :param is_there: False behind the last one.
    """

    at: Int64[Tensor, "2 rows first"]
    is_there: Bool[Tensor, "2 rows first"]

    def next(
        self, sign: Int64[Tensor, " rows"], number: Int64[Tensor, "2 rows"]
    ) -> tuple[Int64[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Give each row's candidate of a sign, and whether there is one; those of before are passed over."""
        rows = torch.arange(len(sign), device=sign.device)
        place = number[sign, rows]
        last = self.at.shape[2] - 1
        found = self.is_there[sign, rows, place.clamp_max(last)] & (place <= last)
        number[sign, rows] += 1
        return self.at[sign, rows, place.clamp_max(last)], found


def _ranked(
    keys: Float32[Tensor, "rows in"], falls: Float32[Tensor, "rows in"], of: Bool[Tensor, "rows in"], first: int
) -> _Ranked:
    """Order the weights that ``of`` names by their keys, the largest first: once those by which ε falls as they come or
    go, and once those by which it rises."""
    both = torch.stack([torch.where(of & (sign * falls > 0), keys, -torch.inf) for sign in (1, -1)])
    found = both.topk(min(first, keys.shape[1]), dim=2)
    return _Ranked(found.indices, found.values > -torch.inf)


class _Rows:
    """Holds the rows of a layer while weights are exchanged.

    :ivar mask: True for every weight that is kept by now.
    """

    def __init__(
        self, weight: Float[Tensor, "out in"], before: Pruned, moments: ColumnMoments, how: Dsnot, budget: Budget
    ) -> None:
        mean = moments.mean * _TOKENS
        floor = _CONSTANT * moments.squared / max(moments.tokens, 1) + torch.finfo(torch.float32).tiny
        variance = torch.maximum(moments.variance, floor).float()
        self.mask = before.mask.clone()
        self.coming = weight.float() * mean.float()  # what ε falls by as a weight comes back
        self.going = -before.weight.float() * mean.float()  # and as one goes
        self.metric = before.weight.abs().float() * moments.squared.sqrt().float()
        self.metric.masked_fill_(~before.mask, torch.inf)
        self.error = (self.coming + self.going).sum(1, dtype=torch.float64)
        self.sign = self.error.sign()
        self.threshold = how.threshold
        self.active = torch.ones_like(self.mask[:, 0])
        self.m = budget.m if isinstance(budget, Pattern) else None
        self.same_sign = how.same_sign or self.m is not None
        self.come = _ranked((self.coming / variance).abs(), self.coming, ~before.mask, how.max_cycles)
        self.go = _ranked(-self.metric, self.going, before.mask, how.max_cycles)
        self.numbers = [torch.zeros(2, len(weight), dtype=torch.int64, device=weight.device) for _ in range(2)]

    def expected_error(self) -> float:
        """Give Σ|ε| of all rows as a share of what the dense ones are expected to put out."""
        output = float(self.coming.sum(1, dtype=torch.float64).abs().sum())
        return float(self.error.abs().sum()) / output if output else 0.0

    def exchange(self) -> bool:
        """Exchange one weight of each row that is not at its end; say whether there was any such row."""
        self.active &= self.error.abs() > self.threshold
        sign = (self.error < 0).long()
        come, can_come = self.come.next(sign, self.numbers[0])
        go, can_go = self.go.next(sign, self.numbers[1]) if self.m is None else self._in_run(come, self.m)
        after = self.error - self._fall(come, go)
        # A run of which none may go is passed over; where no weight of the row may, it is at its end.
        ends = ~can_come if self.m is not None else ~(can_come & can_go)
        if self.same_sign:
            ends |= can_go & (after.sign() != self.sign)
        self.active &= ~ends
        taken = self.active & can_go
        rows = taken.nonzero()[:, 0]
        self.error = torch.where(taken, after, self.error)
        self.mask[rows, come[rows]], self.mask[rows, go[rows]] = True, False
        self.metric[rows, go[rows]] = torch.inf
        return bool(self.active.any())

    def _fall(self, come: Int64[Tensor, " rows"], go: Int64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
        return (self.coming.gather(1, come[:, None]) + self.going.gather(1, go[:, None]))[:, 0].double()

    def _in_run(self, come: Int64[Tensor, " rows"], m: int) -> tuple[Int64[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Give the weight with the smallest metric of a run that may still go, and whether there is one."""
        inputs = (come // m * m)[:, None] + torch.arange(m, device=come.device)
        least, at = self.metric.gather(1, inputs).min(1)
        return inputs.gather(1, at[:, None])[:, 0], least < torch.inf


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"dsnot": Dsnot}
