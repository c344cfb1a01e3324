"""One piece of memory for all packed matrices of a model, in huge pages where the system has them.

A matrix of its own piece would round each up to a page of 2 MB, which is more than a small model's matrix has.
"""

import mmap
from collections.abc import Iterable
from contextlib import suppress

import torch
from jaxtyping import UInt8
from torch import Tensor

LINE = 64


class Arena:
    """Gives out memory, piece by piece, each begun at a multiple of 64 bytes.

    :param sizes: Of the pieces that will be asked for, in bytes; together they are how much is reserved.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._memory = _reserved(sum(map(_whole, sizes)))
        self._used = 0

    def take(self, nbytes: int) -> UInt8[Tensor, "bytes"]:
        """Give the next piece."""
        piece = self._memory[self._used : self._used + nbytes]
        if len(piece) < nbytes:
            raise ValueError(f"{nbytes} bytes are asked for, and {len(piece)} are left")
        self._used += _whole(nbytes)
        return piece


def _reserved(nbytes: int) -> Tensor:
    """Reserve memory, of which a page takes room when it is first written."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    # Shared memory, which is what Python maps otherwise, has no huge pages by default, and a child of fork would write
    # into its parent's. Windows knows no such flags.
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, nbytes, **own)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # of a system without them; ordinary pages do
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _whole(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
