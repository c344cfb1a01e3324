"""The order in which a tensor's numbers lie in memory, which whatever copies it has to keep.

A sum over numbers that lie otherwise is taken in another order, and rounds otherwise: a model that transposes its
hidden states would give other bits from a copy in which they lie row by row.
"""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor


def axes_as_they_lie(tensor: Shaped[Tensor, "..."]) -> tuple[int, ...]:
    """Give a tensor's axes from the one with the longest steps to the one with the shortest, equal ones as they are."""
    steps = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda axis: -steps[axis]))


def in_their_places(laid_out: Shaped[Tensor, "..."], axes: Sequence[int]) -> Shaped[Tensor, "..."]:
    """Give back the tensor of which another one is ``permute(axes)``, as a view of that."""
    return laid_out.permute(sorted(range(len(axes)), key=axes.__getitem__))
