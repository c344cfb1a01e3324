"""One threshold for weights of many layers, found exactly in two passes over them, a layer in memory at a time.

Floats that are not negative are in the order of their bits. The first pass counts weights by the upper half of the bits
of their metric, which shows in which of these bins the threshold lies; the second counts those in it by the lower half.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ecoflap.core.budget.water_fill import split
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer

Metric: TypeAlias = Callable[[Layer], Float[Tensor, "out in"]]
"""Gives a layer's metric in float32, at least 0; larger is kept."""

_HALF = 1 << 16
"""How many values half of the 32 bits have."""


def counts_above(layers: Sequence[Layer], metric: Metric, keep: int) -> Mapping[str, int]:
    """Count by layer what is kept where the largest ``keep`` metrics of all layers are.

    Of weights that are equal to the threshold each layer keeps a share in proportion to how many it has.

    :raises ModelError: Where a metric is not finite or negative.
    """
    uppers = [_histogram(_bits(layer, metric) // _HALF) for layer in layers]
    upper, above = _last_bin(torch.stack(uppers).sum(0), keep)
    lowers = [_histogram(_lower(_bits(layer, metric), upper)) for layer in layers]
    lower, within = _last_bin(torch.stack(lowers).sum(0), keep - above)
    ties = [int(counts[lower]) for counts in lowers]
    shares = split(keep - above - within, ties, [layer.name for layer in layers])
    return {
        layer.name: int(high[upper + 1 :].sum()) + int(low[lower + 1 :].sum()) + share
        for layer, high, low, share in zip(layers, uppers, lowers, shares, strict=True)
    }


def _bits(layer: Layer, metric: Metric) -> Int64[Tensor, " weights"]:
    values = metric(layer).contiguous().flatten()
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        raise ModelError(f"{layer.name}: its weights or gradients are not finite, so that nothing can be compared")
    return (values + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 a 0.0, whose bits are all 0


def _lower(bits: Int64[Tensor, " weights"], upper: int) -> Int64[Tensor, " some"]:
    return bits[bits // _HALF == upper] % _HALF


def _histogram(values: Int64[Tensor, " values"]) -> Int64[Tensor, " bins"]:
    return torch.bincount(values, minlength=_HALF).cpu()


def _last_bin(counts: Int64[Tensor, " bins"], keep: int) -> tuple[int, int]:
    """Find the lowest bin of which something is kept, and how many lie above it."""
    from_top = counts.flip(0).cumsum(0)
    at = int(torch.searchsorted(from_top, torch.tensor(max(keep, 1))))
    at = min(at, len(counts) - 1)
    return len(counts) - 1 - at, int(from_top[at] - counts.flip(0)[at])
