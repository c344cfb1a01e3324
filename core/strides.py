"""How a tensor's numbers lie in memory: their order, which whatever copies it has to keep, or a layout with none.

A sum over numbers that lie otherwise is taken in another order, and rounds otherwise: a model that transposes its
hidden states would give other bits from a copy in which they lie row by row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def axes_as_they_lie(tensor: Shaped[Tensor, "..."]) -> tuple[int, ...]:
    """Give a tensor's axes from the one with the longest steps to the one with the shortest, equal ones as they are."""
    steps = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda axis: -steps[axis]))


def in_their_places(laid_out: Shaped[Tensor, "..."], axes: Sequence[int]) -> Shaped[Tensor, "..."]:
    """Give back the tensor of which another one is ``permute(axes)``, as a view of that."""
    return laid_out.permute(sorted(range(len(axes)), key=axes.__getitem__))


def layout_but_dense(tensor: Tensor) -> str:  # a nested one has no shape that could be checked
    """Name the layout of a tensor that is no dense one, such as ``sparse_coo`` or ``nested``; empty of a dense one."""
    if tensor.is_nested:
        return "nested"
    return "" if tensor.layout is torch.strided else str(tensor.layout).removeprefix("torch.")
