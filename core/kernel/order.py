"""Put matrices into the kernel's order and decode them by numpy, where there is no library.

Sixteen outputs are a block: a 16 bit mask for each column, and the kept values column by column; in bfloat16 by pairs
of columns, output by output, and in int8 by fours. Inputs are filled up to 32 columns. ``kernels/src/order.h``
describes it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import TYPES, VALUES, Values
from ecoflap.core.kernel.whole_numbers import rounded_rows

OUTPUTS = 16
_COLUMNS = 32
_LINE = 64
_MAGIC = b"ecoflapK"
_VERSION = 2
_HEADER = struct.Struct("<8sIIqqq24x")
_INTEGERS: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 2: np.dtype("<u2"), 1: np.dtype("u1")}
_NUMBERS = {TYPES[dtype] + more: (dtype, values) for values, more in VALUES.items() for dtype in TYPES}
_PANEL = 1 << 22
"""Weights that are put into order at a time."""


@dataclass(frozen=True)
class Shape:
    """Says of a packed matrix what its header says: from which follows where all of it lies.

    :param dtype: Of the weights; where they are int8, the one that they stand for.
    :param kept: How many weights are kept.
    """

    dtype: torch.dtype
    outputs: int
    inputs: int
    kept: int
    values: Values = "exact"

    @property
    def number(self) -> int:
        """Give the library's number for its type."""
        return TYPES[self.dtype] + VALUES[self.values]

    @property
    def itemsize(self) -> int:
        """Bytes of a value as it is packed."""
        return self.dtype.itemsize if self.values == "exact" else 1

    @property
    def bytes_dense(self) -> int:
        """Say how many bytes it takes dense."""
        return self.outputs * self.inputs * self.dtype.itemsize

    @property
    def keeps_all(self) -> bool:
        """Say whether nothing is pruned."""
        return self.kept == self.outputs * self.inputs

    @property
    def together(self) -> int:
        """Say how many columns lie output by output."""
        if self.values != "exact":
            return 4
        return 2 if self.dtype == torch.bfloat16 else 1

    @property
    def blocks(self) -> int:
        """Say how many times 16 outputs there are."""
        return -(-self.outputs // OUTPUTS)

    @property
    def padded(self) -> int:
        """Say how many columns a block has."""
        return _up(self.inputs, _COLUMNS)

    @property
    def masks_at(self) -> int:
        """Say behind how many bytes the masks begin."""
        return _LINE + _up(8 * (self.blocks + 1), _LINE)

    @property
    def scales_at(self) -> int:
        """Say behind how many bytes the scales begin, of which only int8 has any."""
        return self.masks_at + 2 * self.blocks * self.padded

    @property
    def sums_at(self) -> int:
        """Say behind how many bytes the sums of each output's whole numbers begin, of which only int8 has any."""
        return self.scales_at + (0 if self.values == "exact" else 4 * self.blocks * OUTPUTS)

    @property
    def values_at(self) -> int:
        """Say behind how many bytes the kept values begin."""
        return self.sums_at + (0 if self.values == "exact" else 8 * self.blocks * OUTPUTS)

    @property
    def nbytes(self) -> int:
        """Say how many bytes it takes."""
        return self.values_at + _up(self.kept * self.itemsize, _LINE) + _LINE


def shape_of(packed: UInt8[Tensor, "bytes"]) -> Shape:
    """Read the header of a packed matrix.

    :raises KernelError: Where it is none, or has another length than it says.
    """
    head = packed[:_LINE].numpy().tobytes()
    if len(head) == _LINE:
        magic, version, kind, outputs, inputs, kept = _HEADER.unpack(head)
        if magic == _MAGIC and version == _VERSION and kind in _NUMBERS and min(outputs, inputs, kept) >= 0:
            dtype, values = _NUMBERS[kind]
            shape = Shape(dtype, outputs, inputs, kept, values)
            if kept <= outputs * inputs and shape.nbytes == len(packed):
                return shape
    raise KernelError("this is no packed matrix, or a damaged one: its header does not fit its length")


def write_header(out: UInt8[Tensor, "bytes"], shape: Shape) -> None:
    """Write what a matrix says of itself."""
    header = _HEADER.pack(_MAGIC, _VERSION, shape.number, shape.outputs, shape.inputs, shape.kept)
    out[:_LINE] = torch.frombuffer(bytearray(header), dtype=torch.uint8)


def write_rows(
    out: UInt8[Tensor, "bytes"], shape: Shape, bits: UInt8[Tensor, " masks"], values: Shaped[Tensor, " kept"]
) -> None:
    """Put a matrix into the kernel's order, from one bit for each weight and its kept values, both in row order."""
    raw, kept = values.view(torch.uint8).numpy().view(_INTEGERS[shape.dtype.itemsize]), bits.numpy()
    memory, starts, done = out.numpy(), [0], 0
    if _bits(kept, shape.outputs * shape.inputs, 8 * len(kept) - shape.outputs * shape.inputs).any():
        raise KernelError("the bits after the mask's last weight are not zero")
    memory[:] = 0
    write_header(out, shape)
    for first, rows in _panels(shape):
        mask = _bits(kept, first * shape.inputs, rows * shape.inputs).reshape(rows, shape.inputs)
        dense = np.zeros(mask.shape, raw.dtype)
        count = int(mask.sum())
        if done + count > len(raw):
            raise KernelError("the mask keeps more weights than there are values")
        dense[mask] = raw[done : done + count]
        if shape.values != "exact":
            dense = _rounded(memory, shape, first, torch.from_numpy(dense).view(shape.dtype))
        starts += _write_panel(memory, shape, first // OUTPUTS, mask, dense, done)
        done += count
    if done != shape.kept:
        raise KernelError("the mask keeps fewer weights than there are values")
    memory[_LINE : _LINE + 8 * len(starts)] = np.array(starts, "<u8").view(np.uint8)


def _write_panel(
    memory: NDArray[np.uint8], shape: Shape, block: int, mask: NDArray[np.bool_], dense: NDArray[Any], done: int
) -> list[int]:
    """Write the masks and values of some blocks; give where the values of each end."""
    size, ordered = shape.itemsize, _ordered(mask, shape)
    at = shape.masks_at + 2 * block * shape.padded
    packed = np.packbits(ordered.reshape(-1), bitorder="little")
    memory[at : at + len(packed)] = packed
    values = _ordered(dense, shape)[ordered].view(np.uint8)
    at = shape.values_at + done * size
    memory[at : at + len(values)] = values
    counts = ordered.sum(axis=(1, 2, 3))
    return [int(end) for end in done + np.cumsum(counts)]


def _rounded(memory: NDArray[np.uint8], shape: Shape, first: int, dense: Tensor) -> NDArray[np.uint8]:
    """Round rows to int8, and write their scales and sums."""
    whole, scales = rounded_rows(dense.float())
    sums = whole.sum(dim=1, dtype=torch.int64)
    for at, numbers in ((shape.scales_at, scales.numpy().astype("<f4")), (shape.sums_at, sums.numpy().astype("<i8"))):
        at += numbers.itemsize * first
        memory[at : at + numbers.nbytes] = numbers.view(np.uint8)
    return whole.view(torch.uint8).numpy()


def read_rows(packed: UInt8[Tensor, "bytes"], first: int, rows: int) -> Shaped[Tensor, "rows in"]:
    """Decode some rows, from one that is a multiple of 16."""
    shape, memory = shape_of(packed), packed.numpy()
    blocks = range(first // OUTPUTS, -(-(first + rows) // OUTPUTS))
    starts = memory[_LINE : _LINE + 8 * (shape.blocks + 1)].view("<u8")
    line = 2 * shape.padded
    masks = memory[shape.masks_at + line * blocks.start : shape.masks_at + line * blocks.stop]
    kept = np.unpackbits(masks, bitorder="little").view(np.bool_)
    begin, end = int(starts[blocks.start]), int(starts[blocks.stop])
    if not 0 <= begin <= end <= shape.kept or int(kept.sum()) != end - begin:
        raise KernelError("this is no packed matrix, or a damaged one: its masks do not fit its kept values")
    size = shape.itemsize
    values = memory[shape.values_at + begin * size : shape.values_at + end * size].view(_INTEGERS[size])
    dense = np.zeros(len(kept), values.dtype)
    dense[kept] = values
    ordered = _dense(dense, shape, len(blocks))[:rows]
    if shape.values == "exact":
        return ordered.view(shape.dtype)
    scales = memory[shape.scales_at : shape.sums_at].view("<f4")[first : first + rows]
    return (ordered.view(torch.int8).float() * torch.from_numpy(scales.copy())[:, None]).to(shape.dtype)


def _dense(ordered: NDArray[Any], shape: Shape, blocks: int) -> Tensor:
    """Undo :func:`_ordered`, and leave columns out that only fill up."""
    rows = ordered.reshape(blocks, shape.padded // shape.together, OUTPUTS, shape.together).transpose(0, 2, 1, 3)
    flat = rows.reshape(blocks * OUTPUTS, shape.padded)[:, : shape.inputs]
    return torch.from_numpy(np.ascontiguousarray(flat))


def _ordered(rows: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Fill rows up to blocks and columns, and put each block into its order."""
    blocks = -(-len(rows) // OUTPUTS)
    filled = np.zeros((blocks * OUTPUTS, shape.padded), rows.dtype)
    filled[: len(rows), : shape.inputs] = rows
    ordered = filled.reshape(blocks, OUTPUTS, shape.padded // shape.together, shape.together).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(ordered)


def _panels(shape: Shape) -> Iterator[tuple[int, int]]:
    """Divide rows into panels of whole blocks: where each begins, and how many rows it has."""
    each = max(1, _PANEL // max(1, OUTPUTS * shape.padded)) * OUTPUTS
    for first in range(0, shape.outputs, each):
        yield first, min(each, shape.outputs - first)


def bits_between(bits: UInt8[Tensor, " masks"], first: int, count: int) -> Bool[Tensor, " count"]:
    """Open some bits of a mask: True for each weight that is kept."""
    return torch.from_numpy(_bits(bits.numpy(), first, count).copy())


def _bits(packed: NDArray[np.uint8], first: int, count: int) -> NDArray[np.bool_]:
    opened = np.unpackbits(packed[first // 8 : -(-(first + count) // 8)], bitorder="little")
    return opened[first % 8 : first % 8 + count].view(np.bool_)


def _up(number: int, to: int) -> int:
    return -(-number // to) * to
