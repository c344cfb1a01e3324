"""Exact integer budgets: how many weights are kept, spread over groups, layers and rows without losing one."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from math import isfinite
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ecoflap.core.errors import EcoflapError

Compare = Literal["row", "layer"]
"""Whom a weight competes with: those of its own output row, or all of its layer."""

Number: TypeAlias = int | float | str | Fraction


_CACHED = 1 << 16  # elements: what a core keeps at hand


@dataclass(frozen=True)
class Keep:
    """Exactly ``count`` weights of a layer are kept."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise EcoflapError(f"a layer cannot keep {self.count} weights: the count is 0 or more")


@dataclass(frozen=True)
class Pattern:
    """``n`` weights are kept of every ``m`` consecutive inputs of a row; ``Pattern(2, 4)`` is NVIDIA's 2:4.

    The literature disagrees: Wanda's and SparseGPT's ``prune_n`` counts the pruned ones. Here, as in the name "N:M
    sparsity", n are kept.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise EcoflapError(
                f"pattern {self}: n weights are kept of every m, so n is at least 1 and at most m, as in 2:4"
            )

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """From ``"2:4"``."""
        n, colon, m = text.partition(":")
        if not (colon and n.strip().isdecimal() and m.strip().isdecimal()):
            raise EcoflapError(f"{text!r} is no pattern: write n:m, two whole numbers, as in 2:4")
        return cls(int(n), int(m))

    @property
    def sparsity(self) -> Fraction:
        return 1 - Fraction(self.n, self.m)

    def keep_of(self, size: int) -> int:
        """How many it keeps of ``size`` weights in whole runs of m."""
        return size // self.m * self.n

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Budget: TypeAlias = Keep | Pattern


@dataclass(frozen=True)
class Group:
    """Weights that share one sparsity.

    :param size: How many prunable weights it has.
    :param score: How much the loss cares about it.
    :param layers: Names of its layers.
    :param floor: It keeps at least this many.
    :param cap: It keeps at most this many; None for all.
    """

    name: str
    size: int
    score: float
    layers: tuple[str, ...] = ()
    tower: str = field(default="", kw_only=True)
    floor: int = field(default=0, kw_only=True)
    cap: int | None = field(default=None, kw_only=True)

    @property
    def most(self) -> int:
        """The most it may keep: its cap, or all."""
        return self.size if self.cap is None else min(self.cap, self.size)


def exact(number: Number) -> Fraction:
    """A number as it is written, so that 0.1 is one tenth and not the float next to it."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def keep_count(size: int, sparsity: Number) -> int:
    """⌊size · (1 - sparsity)⌋, the sparsity read as an exact decimal: 0.9 of 10 leaves 1, not 0."""
    try:
        share = exact(sparsity)
    except (ValueError, ZeroDivisionError):
        raise EcoflapError(f"{sparsity!r} is no sparsity: write a number between 0 and 1, such as 0.5") from None
    if not 0 <= share <= 1:
        raise EcoflapError(f"sparsity is the share of weights that go, between 0 and 1; {sparsity} is not")
    return int(size * (1 - share) // 1)


def water_fill(
    base: Sequence[int | float | Fraction],
    slope: Sequence[int | float | Fraction],
    lower: Sequence[int],
    upper: Sequence[int],
    total: int,
    names: Sequence[str],
) -> list[int]:
    """Counts k_g = clip(base_g + t · slope_g, lower_g, upper_g), with the one t at which they sum to ``total``.

    Solved in fractions: the sum is linear between the points where a count meets a bound, so the piece that holds the
    total gives t without iteration. Rounded down, what is left going to the largest remainders. Groups of slope 0 stay
    at their base; only when all others are at a bound do they share what is still missing, in proportion to their room.

    :param slope: At least 0.
    :param names: Decide between equal remainders.
    """
    _check_bounds(lower, upper, total, names)
    bases, slopes = [Fraction(b) for b in base], [Fraction(s) for s in slope]
    return _whole(_levels(bases, slopes, lower, upper, total), total, names)


def _check_bounds(lower: Sequence[int], upper: Sequence[int], total: int, names: Sequence[str]) -> None:
    crossed = [
        f"{name} has to keep at least {low} weights and at most {high}: lower its floor or raise its cap"
        for name, low, high in zip(names, lower, upper, strict=True)
        if low > high
    ]
    if crossed:
        raise EcoflapError(*crossed)
    if sum(lower) > total:
        raise EcoflapError(
            f"the groups have to keep at least {sum(lower)} weights together, but the sparsity leaves only {total}: "
            "lower the floors or the sparsity, or raise max_sparsity"
        )
    if sum(upper) < total:
        raise EcoflapError(
            f"the groups may keep at most {sum(upper)} weights together, but the sparsity leaves {total}: "
            "raise the caps or the sparsity"
        )


def _levels(
    base: Sequence[Fraction], slope: Sequence[Fraction], lower: Sequence[int], upper: Sequence[int], total: int
) -> list[Fraction]:
    groups = list(zip(base, slope, lower, upper, strict=True))

    def at(t: Fraction) -> list[Fraction]:
        return [min(max(b + t * s, Fraction(low)), Fraction(high)) for b, s, low, high in groups]

    def filled(t: Fraction) -> Fraction:
        return sum(at(t), Fraction(0))

    bends = sorted({(bound - b) / s for b, s, *bounds in groups if s for bound in bounds})
    right = bisect_left(bends, Fraction(total), key=filled)
    if 0 < right < len(bends):
        before, after = at(bends[right - 1]), at(bends[right])
        share = (total - filled(bends[right - 1])) / (filled(bends[right]) - filled(bends[right - 1]))
        return [a + share * (b - a) for a, b in zip(before, after, strict=True)]
    level = at(bends[-1 if right else 0] if bends else Fraction(0))
    missing = total - sum(level, Fraction(0))
    if not missing:
        return level
    room = [high - k if missing > 0 else k - low for k, low, high in zip(level, lower, upper, strict=True)]
    return [k + missing * r / sum(room, Fraction(0)) for k, r in zip(level, room, strict=True)]


def _whole(shares: Sequence[Fraction], total: int, names: Sequence[str]) -> list[int]:
    """Whole numbers that sum to what the shares sum to: the floors, and one more for the largest remainders."""
    counts = [int(share // 1) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], names[i]))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def split(count: int, sizes: Sequence[int], names: Sequence[str]) -> list[int]:
    """A group's count over its layers, in proportion to their sizes; remainders to the largest, ties by name."""
    if not 0 <= count <= sum(sizes):
        raise EcoflapError(f"{count} weights cannot be kept of the {sum(sizes)} in {', '.join(names) or 'no layer'}")
    return _whole([Fraction(count * size, sum(sizes) or 1) for size in sizes], count, names)


def row_counts(count: int, rows: int, columns: int) -> Int64[Tensor, " rows"]:
    """How many each row keeps: ⌊(i+1)·count/rows⌋ - ⌊i·count/rows⌋, which spreads a remainder evenly down the rows."""
    check_fits(Keep(count), rows, columns)
    return (torch.arange(rows + 1) * count // max(rows, 1)).diff()


def check_fits(budget: Budget, rows: int, columns: int) -> None:
    """Refuses a count larger than the matrix, and a pattern whose m does not divide its inputs."""
    if isinstance(budget, Keep):
        if budget.count > rows * columns:
            raise EcoflapError(f"{budget.count} weights cannot be kept of the {rows * columns} there are")
    elif columns % budget.m:
        raise EcoflapError(
            f"in_features {columns} is not divisible by {budget.m}, so {budget} cannot be kept: "
            "give this layer a sparsity instead, or leave it out"
        )


def select(metric: Float[Tensor, "out in"], budget: Budget, compare: Compare = "row") -> Bool[Tensor, "out in"]:
    """Which weights stay: exactly as many as the budget says, those with the largest metric. True is kept.

    Of equal metrics the one at the lower index goes first, as in Wanda's stable sort.

    :param metric: Finite; larger is kept longer.
    :param compare: ``"row"`` gives each output row its share, ``"layer"`` compares all weights of the matrix. A pattern
        always compares the m of a run.
    """
    if not is_finite(metric):
        raise EcoflapError("the metric is NaN or infinite somewhere: the weights or the layer's inputs are not finite")
    metric = metric.detach()
    rows, columns = metric.shape
    check_fits(budget, rows, columns)
    if isinstance(budget, Pattern):
        runs = metric.reshape(-1, budget.m)
        kept = _best(runs, budget.n) if budget.m <= 16 else _largest(runs, torch.full((len(runs),), budget.n))
        return kept.reshape(metric.shape)
    if compare == "row":
        return _largest(metric, row_counts(budget.count, rows, columns))
    return _largest(metric.reshape(1, -1), torch.tensor([budget.count])).reshape(metric.shape)


def is_finite(values: Float[Tensor, "..."]) -> bool:
    """Neither NaN nor infinite anywhere: the extremes tell, in a fraction of the time of asking every element."""
    return not values.numel() or all(isfinite(float(extreme)) for extreme in values.aminmax())


def zeros_first(metric: Float[Tensor, "out in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The metric with weights that are already zero below all others, even below those of a dead input."""
    zero = weight == 0
    # As a rule there are none, and nothing need be copied.
    return metric.masked_fill(zero, torch.finfo(metric.dtype).min) if bool(zero.any()) else metric


def kept_only(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """The weight with +0.0 wherever the mask is False, whatever was there: -0.0, NaN and infinity too."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    # Every bit of a kept weight is multiplied by 1, of a pruned one by 0: several times faster than masked_fill.
    return (weight.contiguous().view(bits) * mask).view(weight.dtype)


def _best(runs: Float[Tensor, "runs m"], n: int) -> Bool[Tensor, "runs m"]:
    """The n largest of each short run: those that fewer than n others beat.

    All pairs are compared at once, and a small matrix product counts who is beaten: some twenty times faster than a
    selection in each run. In pieces, since a run of m has m² pairs, and they should stay in the cache.
    """
    m = runs.shape[1]
    duels, later_wins = _duels(m, runs.device)
    kept = torch.empty(runs.shape[::-1], dtype=torch.bool, device=runs.device)
    step = max(1, (1 << 22 if runs.is_cuda else 1 << 15) // m**2)
    for piece, answer in zip(runs.T.contiguous().split(step, dim=1), kept.split(step, dim=1), strict=True):
        wins = torch.ge(piece, piece[:, None], out=piece.new_empty(m, *piece.shape, dtype=torch.float32))
        torch.lt(torch.addmm(later_wins, duels, wins.flatten(0, 1)), n, out=answer)
    return kept.T


@cache
def _duels(m: int, device: torch.device) -> tuple[Float32[Tensor, "m pairs"], Float32[Tensor, "m 1"]]:
    """How often each is beaten, from all answers to "is q at least p?": the product with the first, plus the second.

    For p < q a yes counts against p and a no, which is the second's 1 for every p before q, against q.
    """
    p, q = torch.eye(m)[:, :, None], torch.eye(m)[:, None, :]
    duels = ((p - q) * torch.ones(m, m).triu(1)).flatten(1)
    return duels.to(device), torch.arange(float(m), device=device)[:, None]


def _largest(metric: Float[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows columns"]:
    counts = counts.to(metric.device)
    threshold = _thresholds(metric, counts)
    kept = metric >= threshold[:, None]
    surplus = kept.sum(1) - counts
    tied = surplus.nonzero()[:, 0]
    if len(tied):
        equal = metric[tied] == threshold[tied, None]
        kept[tied] &= ~(equal & (equal.cumsum(1) <= surplus[tied, None]))
    return kept


def _thresholds(metric: Float[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Each row's counts-th largest metric; infinite where none is kept. Selection, not a sort: the counts are few."""
    columns = metric.shape[1]
    threshold = torch.full_like(metric[:, 0], float("inf"))
    for count in counts.unique().tolist():
        if count:
            rows = (counts == count).nonzero()[:, 0]
            some = metric if len(rows) == len(metric) else metric[rows]
            threshold[rows] = _ascending(some, columns - count)
    return threshold


def _ascending(metric: Float[Tensor, "rows columns"], index: int) -> Float[Tensor, " rows"]:
    """What each row would have at this index, were it sorted."""
    if metric.dtype == torch.float32 and metric.device.type == "cpu":
        # numpy's selection uses vector instructions, and is some eight times faster than torch's. It works on a copy;
        # a few rows at a time that copy stays in the cache.
        rows = max(1, _CACHED // metric.shape[1])
        some = [np.partition(piece.numpy(), index, axis=1)[:, index] for piece in metric.split(rows)]
        return torch.from_numpy(np.concatenate(some))
    return metric.kthvalue(index + 1, dim=1).values
