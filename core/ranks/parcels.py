"""What one process sends another: a pickle of everything but its tensors, and these by themselves.

Processes of one run trust each other as much as a process trusts itself, so that what they send may be any object.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.core.strides import axes_as_they_lie, in_their_places


class Tag(NamedTuple):
    """Says what a tensor is that is sent by itself.

    :param shape: With its axes in the order in which its numbers lie, in which they are sent.
    :param axes: Which of the tensor's own each of these is.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, tensor: Tensor) -> "Tag":
        axes = axes_as_they_lie(tensor)
        return cls(tuple(tensor.shape[axis] for axis in axes), axes, tensor.dtype, tensor.device.type)

    def bytes_of(self, tensor: Tensor) -> Tensor:
        """Give the tensor as the bytes that are sent."""
        return tensor.permute(self.axes).contiguous().reshape(-1).view(torch.uint8)

    def tensor_of(self, data: Tensor) -> Tensor:
        """Give the bytes that were sent as the tensor that they are of, on the device that it was on."""
        return in_their_places(data.view(self.dtype).reshape(self.shape), self.axes).to(self.device)

    @property
    def bytes(self) -> int:
        """Count what is sent of it."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Parcel(NamedTuple):
    """Holds an object without its tensors, and what they are."""

    pickled: bytes
    tags: tuple[Tag, ...]


def packed(value: Any) -> tuple[Parcel, list[Tensor]]:
    """Take an object apart into what is pickled and its tensors.

    :raises TypeError, AttributeError, pickle.PicklingError: Where something in it cannot be pickled.
    """
    file, tensors = io.BytesIO(), list[Tensor]()
    pickler = _Pickler(file, tensors)
    pickler.dump(value)
    tags = tuple(map(Tag.of, tensors))
    return Parcel(file.getvalue(), tags), tensors


def unpacked(parcel: Parcel, tensors: Sequence[Tensor]) -> Any:
    """Put an object together again."""
    return _Unpickler(io.BytesIO(parcel.pickled), tensors).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tensors, self._numbers = tensors, dict[int, int]()

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._tensors)
            self._tensors.append(value.detach())
        return self._numbers[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]
