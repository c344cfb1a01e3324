"""Select a layer's mask: exactly as many weights as its budget says, those with the largest metric."""

from functools import cache
from math import isfinite
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ecoflap.core.bits import as_integers, is_nonzero
from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.errors import EcoflapError, unknown

Compare = Literal["row", "layer"]
"""Which weights a weight competes with: those of its own output row, or all of its layer."""

_CACHED = 1 << 16
"""So many elements stay in a core's cache."""

_PAIRED = 16
"""The longest runs of which all pairs are compared."""

_ROWS_ON_GPU = 64
"""Of fewer rows torch's selection, which has a block of threads look at each, takes longer than to sort them all."""


def row_counts(count: int, rows: int, columns: int) -> Int64[Tensor, " rows"]:
    """Spread a count over rows: row i keeps ⌊(i+1)·count/rows⌋ - ⌊i·count/rows⌋, so that a remainder spreads evenly.

    :raises EcoflapError: Where there are fewer weights than the count.
    """
    check_fits(Keep(count), rows, columns)
    return (torch.arange(rows + 1) * count // max(rows, 1)).diff()


def check_fits(budget: Budget, rows: int, columns: int) -> None:
    """Refuse a count larger than the matrix, a pattern whose m does not divide its inputs, and what is no budget."""
    if not isinstance(budget, Keep | Pattern):
        raise EcoflapError(
            f"the budget is {budget!r:.100}; it is a Keep or a Pattern, as a pruner is given one, and as Keep(count) is"
        )
    if isinstance(budget, Keep):
        if budget.count > rows * columns:
            raise EcoflapError(f"{budget.count} weights cannot be kept of the {rows * columns} there are")
    elif columns % budget.m:
        raise EcoflapError(
            f"in_features {columns} is not divisible by {budget.m}, so {budget} cannot be kept: "
            "give this layer a sparsity instead, or leave it out"
        )


def select(metric: Float[Tensor, "out in"], budget: Budget, compare: Compare = "row") -> Bool[Tensor, "out in"]:
    """Select the weights that stay: exactly as many as the budget says, those with the largest metric. True is kept.

    Of equal metrics the one at the lower index goes first, as in Wanda's stable sort.

    :param metric: One number for each weight; larger is kept longer.
    :param compare: ``"row"`` gives each output row its share, ``"layer"`` compares all weights of the matrix. A pattern
        always compares the m of a run.
    :raises EcoflapError: Where the metric is not finite, the budget does not fit the matrix, or nothing is compared so.
    """
    if compare not in get_args(Compare):
        raise EcoflapError(unknown("way to compare", str(compare), get_args(Compare)))
    check_finite(metric)
    metric = metric.detach()
    rows, columns = metric.shape
    check_fits(budget, rows, columns)
    if isinstance(budget, Pattern):
        runs = metric.reshape(-1, budget.m).T
        return best_of_columns(runs, budget.n).T.reshape(metric.shape)
    if compare == "row":
        return _largest(metric, row_counts(budget.count, rows, columns))
    return _largest(metric.reshape(1, -1), torch.tensor([budget.count])).reshape(metric.shape)


def check_finite(metric: Float[Tensor, "..."]) -> None:
    """Refuse a metric that is NaN or infinite somewhere, by which nothing can be chosen."""
    if not metric.is_floating_point():
        raise EcoflapError(f"the metric is {metric.dtype}; a floating-point one is wanted, as metric.float() is")
    if not is_finite(metric):
        raise EcoflapError(
            "the metric is NaN or infinite somewhere: the weights or the layer's inputs are not finite, or the formula "
            "of the metric gives no number for some, as 0 / 0 does"
        )


def is_finite(values: Float[Tensor, "..."]) -> bool:
    """Tell whether nothing is NaN or infinite.

    The extremes show it: to find them takes a fraction of the time that a look at every element takes.
    """
    return not values.numel() or all(isfinite(float(extreme)) for extreme in values.detach().aminmax())


def zeros_first(metric: Float[Tensor, "out in"], weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Lower the metric of weights that are already zero below all others, even below those of an input that is dead."""
    nonzero = is_nonzero(weight)
    # As a rule there are no others, and nothing need be copied.
    if int(nonzero.count_nonzero()) == nonzero.numel():
        return metric
    return metric.masked_fill(~nonzero, torch.finfo(metric.dtype).min)


def kept_only(weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Set a weight to +0.0 wherever the mask is False, whatever was there: -0.0, NaN and infinity too."""
    # Every bit of a kept weight is multiplied by 1, of a pruned one by 0: several times faster than masked_fill.
    return (as_integers(weight) * mask).view(weight.dtype)


def best_of_columns(metric: Float[Tensor, "m runs"], n: int) -> Bool[Tensor, "m runs"]:
    """Select the n largest of each column: those that fewer than n others beat, and of equal ones the later.

    All pairs are compared at once, and a small matrix product counts by how many each is beaten: some twenty times
    faster than a selection in each column. It is done in pieces, since a column of m has m² pairs, which should stay in
    the cache. Of long columns there would be too many.
    """
    m, columns = metric.shape
    if m > _PAIRED:
        return _largest(metric.T, torch.full((columns,), n)).T
    metric, step = metric.contiguous(), max(1, (1 << 22 if metric.is_cuda else 1 << 15) // m**2)
    if columns <= step:
        return _beaten(metric) < n
    return torch.cat([_beaten(piece) < n for piece in metric.split(step, dim=1)], dim=1)


def _beaten(metric: Float[Tensor, "m runs"]) -> Float32[Tensor, "m runs"]:
    """Count by how many others of its column each is beaten."""
    m, columns = metric.shape
    duels, later_wins = _duels(m, metric.device)
    wins = torch.ge(metric, metric[:, None], out=metric.new_empty(m, m, columns, dtype=torch.float32))
    return torch.addmm(later_wins, duels, wins.flatten(0, 1))


@cache
def _duels(m: int, device: torch.device) -> tuple[Float32[Tensor, "m pairs"], Float32[Tensor, "m 1"]]:
    """Give the matrix and the vector that turn all answers to "is q at least p?" into how often each is beaten.

    The matrix times the answers, plus the vector, is that count. For p < q a yes counts against p; a no counts against
    q, for which the vector has 1 for every p before q, and the matrix takes it back for every yes.
    """
    p, q = torch.eye(m)[:, :, None], torch.eye(m)[:, None, :]
    duels = ((p - q) * torch.ones(m, m).triu(1)).flatten(1)
    return duels.to(device), torch.arange(float(m), device=device)[:, None]


def _largest(metric: Float[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows columns"]:
    """Select the largest of each row, as many as its count; of equal ones the later."""
    counts = counts.to(metric.device)
    threshold = _thresholds(metric, counts)
    kept = metric >= threshold[:, None]
    surplus = kept.sum(1) - counts
    tied = surplus.nonzero()[:, 0]
    if len(tied):
        some = metric if len(tied) == len(metric) else metric[tied]
        row, column = (some == threshold[tied, None]).nonzero(as_tuple=True)  # in the order of rows, then of columns
        first = torch.searchsorted(row, torch.arange(len(tied), device=row.device))
        dropped = torch.arange(len(row), device=row.device) - first[row] < surplus[tied][row]
        kept[tied[row[dropped]], column[dropped]] = False
    return kept


def _thresholds(metric: Float[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Find the smallest metric that each row keeps; infinite where it keeps none.

    Rows of one count are searched together: there are few counts, and a selection is faster than a sort.
    """
    columns = metric.shape[1]
    threshold = torch.full_like(metric[:, 0], float("inf"))
    for count in counts.unique().tolist():
        if count:
            rows = (counts == count).nonzero()[:, 0]
            some = metric if len(rows) == len(metric) else metric[rows]
            threshold[rows] = _ascending(some, columns - count)
    return threshold


def _ascending(metric: Float[Tensor, "rows columns"], index: int) -> Float[Tensor, " rows"]:
    """Give what each row would have at this index, were it sorted."""
    if metric.dtype == torch.float32 and metric.device.type == "cpu":
        # numpy's selection uses vector instructions, and is some eight times faster than torch's. It works on a copy;
        # a few rows at a time that copy stays in the cache.
        rows = max(1, _CACHED // metric.shape[1])
        some = [np.partition(piece.numpy(), index, axis=1)[:, index] for piece in metric.split(rows)]
        return torch.from_numpy(np.concatenate(some))
    if metric.is_cuda and len(metric) < _ROWS_ON_GPU:
        return metric.sort(dim=1).values[:, index].clone()
    return metric.kthvalue(index + 1, dim=1).values
