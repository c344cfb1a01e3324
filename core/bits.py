"""Numbers by their bits, and masks of one bit a weight.

By its bits a weight is 0.0 or -0.0 where nothing is left of it without its sign; NaN is neither. To look so takes a
fraction of the time of comparing numbers, and after ``torch.set_flush_denormal(True)`` too the smallest are no zeros.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By a number's bytes, the type that its bits are looked at and copied as: no floating-point unit then quiets a NaN."""


def as_integers(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Give numbers' bits as whole numbers, in the same memory where they lie in one piece."""
    return tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])


def is_nonzero(weight: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Say of each weight whether it is something else than 0.0 or -0.0."""
    return (as_integers(weight) << 1).bool()


def count_nonzero(weight: Float[Tensor, "..."]) -> int:
    """Count the weights that are something else than 0.0 or -0.0."""
    return int((as_integers(weight) << 1).count_nonzero())


def same_bits(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    """Say whether two tensors of one type are equal bit by bit; 0.0 and -0.0 are not."""
    return torch.equal(as_integers(a), as_integers(b))


def pack_mask(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """Make a mask one bit for each weight, in row-major order and the first weight in the lowest bit of a byte.

    The last byte is filled up with zeros.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy(), bitorder="little"))


def full_mask(size: int) -> UInt8[Tensor, "bytes"]:
    """Give the packed mask that keeps all of so many weights."""
    bits = torch.full(((size + 7) // 8,), 255, dtype=torch.uint8)
    if size % 8:
        bits[-1] = (1 << size % 8) - 1
    return bits
