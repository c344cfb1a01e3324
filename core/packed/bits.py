"""Look at floats by their bits, as whole numbers: to count, compare and move them so takes a fraction of the time.

Both zeros are zeros: what is left of a float without its sign is nothing for ``0.0`` and ``-0.0`` alone. It is done in
pieces that fit a core's cache, so that nothing as large as a tensor is made.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ecoflap.core.bits import INTEGERS
from ecoflap.core.sealing.sealed import flat

_Bits: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.signedinteger[Any]]]"
_PIECE = 1 << 18
"""Numbers that are looked at in one go; those of whole bytes of a mask."""


def bits_of(tensor: Shaped[Tensor, "..."]) -> _Bits:
    """Give a tensor's elements of 2, 4 or 8 bytes as whole numbers, in row-major order and in the same memory."""
    flattened = flat(tensor)
    return flattened.view(INTEGERS[flattened.dtype.itemsize]).numpy()


def nonzeros_of(tensor: Float[Tensor, "..."]) -> int:
    """Count what is not zero; NaN is not."""
    return sum(int(np.count_nonzero(piece << 1)) for piece in _pieces(bits_of(tensor)))


def are_equal_but_for_signs_of_zeros(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> bool:
    """Compare bit by bit, NaN too, but ``0.0`` with ``-0.0``."""
    return all(map(_are_equal, _pieces(bits_of(one)), _pieces(bits_of(other))))


def nonzero_bits(tensor: Float[Tensor, "..."]) -> UInt8[Tensor, "bytes"]:
    """Give the packed mask that keeps what is not zero; NaN is not."""
    pieces = (np.packbits((piece << 1).astype(bool), bitorder="little") for piece in _pieces(bits_of(tensor)))
    return torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *pieces]))


def spread(kept: _Bits, bits: NDArray[np.uint8], size: int) -> Tensor:
    """Put the kept numbers where a mask's packed bits keep them, and zeros elsewhere; a piece at a time is unpacked."""
    dense, done = np.zeros(size, kept.dtype), 0
    for piece, mask in _masked(dense, bits):
        places = np.flatnonzero(mask)
        piece[places] = kept[done : done + len(places)]
        done += len(places)
    return torch.from_numpy(dense)


def gathered(numbers: _Bits, bits: NDArray[np.uint8], count: int) -> Tensor:
    """Take out the numbers that a mask's packed bits keep: :func:`spread` undoes it.

    :param count: How many these are.
    """
    kept, done = np.empty(count, numbers.dtype), 0
    for piece, mask in _masked(numbers, bits):
        found = np.compress(mask, piece)
        kept[done : done + len(found)] = found
        done += len(found)
    return torch.from_numpy(kept)


def zeroed(numbers: _Bits, bits: NDArray[np.uint8]) -> Tensor:
    """Give a copy with zeros for all numbers that a mask's packed bits do not keep."""
    dense = numbers.copy()
    for piece, mask in _masked(dense, bits):
        piece[~mask] = 0
    return torch.from_numpy(dense)


def nonzeros_pruned(weight: Float[Tensor, "..."], bits: NDArray[np.uint8]) -> int:
    """Count the weights that a mask's packed bits do not keep, and that are not zero all the same."""
    pieces = _masked(bits_of(weight), bits)
    return sum(int(np.count_nonzero((piece << 1).astype(bool) & ~mask)) for piece, mask in pieces)


def _are_equal(one: _Bits, other: _Bits) -> bool:
    differs = one != other
    return not differs.any() or not ((one[differs] | other[differs]) << 1).any()


def _masked(numbers: _Bits, bits: NDArray[np.uint8]) -> Iterator[tuple[_Bits, NDArray[np.bool_]]]:
    """Yield numbers a piece at a time, each with its piece of a mask; no more of that is unpacked at once."""
    for start, piece in zip(range(0, len(numbers), _PIECE), _pieces(numbers), strict=True):
        mask = np.unpackbits(bits[start // 8 : (start + _PIECE) // 8], count=len(piece), bitorder="little")
        yield piece, mask.view(bool)


def _pieces(bits: _Bits) -> Iterator[_Bits]:
    return (bits[start : start + _PIECE] for start in range(0, len(bits), _PIECE))
