"""Put a matrix into the kernel's order, and decode it again: by the library where there is one, else by numpy."""

from dataclasses import replace

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from ecoflap.core.bits import count_nonzero, full_mask, is_nonzero, pack_mask
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import order
from ecoflap.core.kernel.library import TYPES, Values, opened
from ecoflap.core.kernel.order import Shape
from ecoflap.core.kernel.route import route


def pack_rows(
    out: UInt8[Tensor, "bytes"], shape: Shape, bits: UInt8[Tensor, " masks"], values: Shaped[Tensor, " kept"]
) -> None:
    """Put a matrix into the kernel's order from what a packed file has of it: the dense one is made nowhere.

    :param out: Where it is to lie: as many bytes as the shape says.
    :param bits: One bit for each weight in row order, the first in the lowest bit of a byte.
    :param values: The kept weights in row order.
    :raises KernelError: Where mask and values do not fit each other, or a value that is to be int8 is not finite.
    """
    if len(bits) != -(-shape.outputs * shape.inputs // 8) or len(values) != shape.kept or values.dtype != shape.dtype:
        raise KernelError(f"a mask of {len(bits)} bytes and {len(values)} values of {values.dtype} are not of {shape}")
    library = opened()
    if isinstance(library, str):
        order.write_rows(out, shape, bits, values)
        return
    place = out.data_ptr(), len(out), shape.number, shape.outputs, shape.inputs
    library.call("pack_rows", *place, bits.data_ptr(), values.data_ptr(), shape.kept)


def pack_dense(
    weight: Float[Tensor, "out in"], out: UInt8[Tensor, "bytes"] | None = None, values: Values = "exact"
) -> UInt8[Tensor, "bytes"]:
    """Put a dense matrix into the kernel's order; what is not zero is kept, and ``-0.0`` becomes ``0.0``.

    :param out: Where it is to lie; by default in memory of its own.
    :raises KernelError: Where a weight that is to be int8 is not finite.
    """
    weight = weight.detach().cpu().contiguous()
    shape = shape_for(weight, values)
    out = torch.empty(shape.nbytes, dtype=torch.uint8) if out is None else out
    library = opened()
    if values != "exact" and shape.keeps_all:
        pack_rows(out, shape, full_mask(shape.outputs * shape.inputs), weight.reshape(-1))
    elif isinstance(library, str):
        kept = is_nonzero(weight)
        order.write_rows(out, shape, pack_mask(kept), weight[kept])
    else:
        place = out.data_ptr(), len(out), shape.number, shape.outputs, shape.inputs
        library.call("pack_dense", *place, weight.data_ptr(), shape.kept)
    return out


def kept_in_int8(nonzeros: int, size: int) -> int:
    """Say how many weights of a matrix in int8 are kept: its zeros too where they are few.

    A product that need not read masks reads less.
    """
    return size if 8 * nonzeros > 7 * size else nonzeros


def shape_for(weight: Float[Tensor, "out in"], values: Values = "exact") -> Shape:
    """Say what a dense matrix is when it is packed."""
    kept = count_nonzero(weight)
    if values != "exact":
        kept = kept_in_int8(kept, weight.numel())
    return Shape(weight.dtype, weight.shape[0], weight.shape[1], kept, values)


def cast(packed: UInt8[Tensor, "bytes"], dtype: torch.dtype) -> UInt8[Tensor, " others"]:
    """Give a packed matrix in another type, in memory of its own; int8 stays what it is, and stands for that type."""
    shape = order.shape_of(packed)
    if shape.values == "exact":
        return pack_dense(unpack(packed).to(dtype))
    again = packed.clone()
    order.write_header(again, replace(shape, dtype=dtype))
    return again


def unpack(packed: UInt8[Tensor, "bytes"], first: int = 0, rows: int | None = None) -> Float[Tensor, "rows in"]:
    """Decode a matrix, or some of its rows from one on that is a multiple of 16, bit by bit as it was.

    A weight in int8 is multiplied with its row's scale in float32, and rounded to the type it stands for.

    :raises KernelError: Where it is no packed matrix, or a damaged one.
    """
    shape, taken = order.shape_of(packed), route()
    rows = shape.outputs - first if rows is None else rows
    if first % order.OUTPUTS or first < 0 or rows < 0 or first + rows > shape.outputs:
        raise KernelError(f"no {rows} rows from {first} on, counted in blocks of {order.OUTPUTS}, are in {shape}")
    if taken.library is None:
        return order.read_rows(packed, first, rows)
    out = torch.empty(rows, shape.inputs, dtype=shape.dtype)
    packed = aligned(packed)
    place = packed.data_ptr(), len(packed), TYPES[shape.dtype], shape.outputs, shape.inputs
    taken.library.call("unpack", taken.number, *place, first, rows, out.data_ptr(), torch.get_num_threads())
    return out


def aligned(packed: UInt8[Tensor, "bytes"]) -> UInt8[Tensor, "bytes"]:
    """Give a packed matrix as the library wants it: without gaps, begun at a multiple of 8 bytes."""
    packed = packed.contiguous()
    return packed if packed.data_ptr() % 8 == 0 else packed.clone()
