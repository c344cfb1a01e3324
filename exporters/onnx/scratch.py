"""Hold what an export makes of weights in files that are mapped, where the model itself is larger than memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecoflap.core.disk.copy_on_write import copy_on_write
from ecoflap.core.forward.placement import Placement

Keep: TypeAlias = Callable[[NDArray[Any]], NDArray[Any]]
"""Gives an array of the same contents, which may lie somewhere else from then on."""

_PIECE = 1 << 22
"""Numbers that are converted or compared at a time."""


def in_memory(array: NDArray[Any]) -> NDArray[Any]:
    """Leave an array where it is."""
    return array


class Scratch:
    """Puts arrays into files of a folder and maps them, so that the system may take them out of memory again.

    :param folder: On a disk with room for them; who made it deletes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, 0

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """Write an array and map it, in row-major order."""
        written = self._written(lambda file: [file.write(piece) for piece in _bytes(array)])
        return written.view(array.dtype).reshape(array.shape)

    def converted(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Write a tensor in another type, piece by piece, and map it."""
        flat = tensor.detach().reshape(-1)
        pieces = (piece.to(dtype).view(torch.uint8).numpy().data for piece in flat.split(_PIECE))
        written = self._written(lambda file: [file.write(piece) for piece in pieces])
        return torch.from_numpy(written).view(dtype).reshape(tensor.shape)

    def _written(self, write: Callable[[BinaryIO], Any]) -> NDArray[np.uint8]:
        self._files += 1
        path = self._folder / str(self._files)
        with path.open("wb") as file:
            write(file)
        return copy_on_write(path, 0, path.stat().st_size).numpy()


def rows_of(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """See an array as some of its rows after the other, so that what is computed of them takes little memory."""
    if array.ndim == 0 or array.size <= _PIECE:
        yield array
        return
    step = max(1, _PIECE * len(array) // array.size)
    yield from (array[first : first + step] for first in range(0, len(array), step))


def _bytes(array: NDArray[Any]) -> Iterator[memoryview]:
    return (np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data for rows in rows_of(array))


@dataclass(frozen=True)
class PlacedInFiles(Placement):
    """Is a placement whose converted weights lie in files."""

    scratch: Scratch = field(kw_only=True)

    def brought(self, tensor: Tensor) -> Tensor:
        """Convert a tensor into a file."""
        assert self.dtype is not None
        return self.scratch.converted(tensor, self.dtype)
