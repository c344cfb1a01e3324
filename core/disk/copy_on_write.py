"""Map some bytes of a file so that they may be written to in memory, while the file stays as it is."""

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

_FAILED = ctypes.c_void_p(-1).value
"""What ``mmap`` gives in place of an address."""


def copy_on_write(file: Path, begin: int, size: int) -> UInt8[Tensor, " bytes"]:
    """Map bytes of a file; the system reads a page when it is looked at, and copies it when it is written to.

    Nothing beside these bytes is mapped, because Linux refuses a mapping that may be written to and is larger than
    memory and swap, as that of the one file of a whole model may be. The mapping goes with the tensor, and holds no
    descriptor of the file, as Python's own does: there is one for each weight, and a process has a thousand or so.

    :param begin: Where in the file they begin.
    :raises OSError: Where the file cannot be opened or mapped.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    if not hasattr(mmap, "PROT_READ"):  # on Windows, where a process may have as many handles as it likes
        return torch.from_numpy(np.memmap(file, np.uint8, "c", begin, (size,)))
    before = begin % mmap.ALLOCATIONGRANULARITY
    length = before + size
    system = _system()
    with file.open("rb") as stream:
        reads_and_writes = mmap.PROT_READ | mmap.PROT_WRITE
        address = system.mmap(None, length, reads_and_writes, mmap.MAP_PRIVATE, stream.fileno(), begin - before)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(file))
    held = (ctypes.c_char * length).from_address(address)  # torch keeps it for as long as there is a tensor over it
    weakref.finalize(held, system.munmap, address, length).atexit = False  # tensors may outlive Python's own end
    return torch.frombuffer(held, dtype=torch.uint8, offset=before, count=size)


@cache
def _system() -> Any:
    """Give the C library of this process, and say what its two functions take."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return library
