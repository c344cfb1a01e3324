"""Whether the right one is among the first k."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Ranked = tuple[Float[Tensor, "rows candidates"], Bool[Tensor, "rows candidates"]]
"""How well each candidate fits, and whether it is right."""


def found_within(
    scores: Float[Tensor, "rows candidates"], right: Bool[Tensor, "rows candidates"], cutoffs: Sequence[int]
) -> Float[Tensor, "rows cutoffs"]:
    """For each row the chance that a right candidate is among the first k, where those of equal score are shuffled.

    Without ties this is 0 or 1. A model that finds all alike is so credited with luck, and with no more: counting the
    order in which candidates happen to stand would give it all or nothing.

    :param cutoffs: Each k, at least 1.
    """
    best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
    above = ((scores > best) & ~right).sum(1)
    level = ((scores == best) & ~right).sum(1)
    alike = ((scores == best) & right).sum(1)
    missed = torch.stack([_missed(above, level, alike, k) for k in cutoffs], 1)
    return torch.where(right.any(1, keepdim=True), 1 - missed, 0.0)


def _missed(
    above: Int64[Tensor, " rows"], level: Int64[Tensor, " rows"], alike: Int64[Tensor, " rows"], k: int
) -> Float[Tensor, " rows"]:
    """The chance that none of the k − above that are drawn from level + alike is of those alike."""
    missed = torch.ones(above.shape, dtype=torch.float64, device=above.device)
    for drawn in range(k):
        others, left = (level - drawn).clamp(min=0).double(), (level + alike - drawn).clamp(min=1)
        missed = torch.where(above + drawn < k, missed * others / left, missed)
    return missed


def cutoffs_below(candidates: int, usual: Sequence[int]) -> tuple[int, ...]:
    """Those that can be missed: among five, one of the first five is always right."""
    return tuple(k for k in usual if k < candidates)
