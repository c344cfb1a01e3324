"""One piece of memory for all packed matrices of a model, in huge pages where the system has them.

A matrix of its own piece would round each up to a page of 2 MB, which is more than a small model's matrix has.
"""

import mmap
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from weakref import ReferenceType, ref

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LINE = 64

_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The copy of each matrix, as long as somebody holds it: of one that two modules share there is one then."""


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


def own_memory(packed: UInt8[Tensor, "bytes"]) -> UInt8[Tensor, "bytes"]:
    """Give a matrix alone in its memory: itself where it is, and else a copy, the same one while it is held.

    A pickle of a tensor holds all of the memory that it is a piece of, and a plain one, as ``pickle`` and what is built
    on it write, holds that anew for each tensor.
    """
    is_alone = packed.is_meta or packed.untyped_storage().nbytes() <= packed.nbytes
    # To a process that is being spawned goes the memory itself, once; a copy would be gone before it is taken.
    if is_alone or get_spawning_popen() is not None:
        return packed
    known: ReferenceType[Tensor] | None = _copies.get(packed)
    copy = None if known is None else known()
    if copy is None:
        copy = torch.empty_like(packed).copy_(packed)
        _copies[packed] = ref(copy)
    return copy


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
