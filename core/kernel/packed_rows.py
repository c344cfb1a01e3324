"""Define ``torch.ops.ecoflap.packed_rows(packed, ids, inputs, dtype)``: rows of a matrix that stays packed.

It is what an embedding does. Sixteen rows lie together, so that those are decoded for each row that is asked for.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.matrix import unpack
from ecoflap.core.kernel.order import OUTPUTS, shape_of

_library = torch.library.Library("ecoflap", "FRAGMENT")
_library.define("packed_rows(Tensor packed, Tensor ids, SymInt inputs, ScalarType dtype) -> Tensor")


def packed_rows(
    packed: UInt8[Tensor, "bytes"], ids: Int[Tensor, "*batch"], inputs: int, dtype: torch.dtype
) -> Float[Tensor, "*batch in"]:
    """Give a packed matrix's rows of these numbers, in its type.

    :raises KernelError: Where ids are no whole numbers, or the matrix is another than it is taken for, or is damaged.
    :raises IndexError: Where there is no such row, as torch's own embedding does.
    """
    _refuse_numbers(ids)
    shape = shape_of(packed)
    if (shape.inputs, shape.dtype) != (inputs, dtype):
        raise KernelError(f"the packed weights have rows of {shape.inputs} {shape.dtype}, and not {inputs} {dtype}")
    wanted = ids.reshape(-1).tolist()
    wrong = next((row for row in wanted if not 0 <= row < shape.outputs), None)
    if wrong is not None:
        raise IndexError(f"row {wrong} is asked for, of {shape.outputs}")
    out = torch.empty(len(wanted), inputs, dtype=dtype)
    block, decoded = -1, out
    for place in sorted(range(len(wanted)), key=wanted.__getitem__):
        if wanted[place] // OUTPUTS != block:
            block = wanted[place] // OUTPUTS
            first = block * OUTPUTS
            decoded = unpack(packed, first, min(OUTPUTS, shape.outputs - first))
        out[place] = decoded[wanted[place] % OUTPUTS]
    return out.view(*ids.shape, inputs)


def _refuse_numbers(ids: Tensor) -> None:
    """Refuse what torch's own embedding takes for no rows, either."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise KernelError(f"rows of an embedding are asked for by whole numbers, int64 or int32, and not {ids.dtype}")


def _without_data(packed: Tensor, ids: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    _refuse_numbers(ids)
    return packed.new_empty(*ids.shape, inputs, dtype=dtype)


def _elsewhere(packed: Tensor, ids: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    raise KernelError(
        f"packed embeddings are read on the CPU, and these are on {packed.device} with ids on {ids.device}. Load the "
        f"model with embeddings='dense' to run it elsewhere."
    )


_library.impl("packed_rows", packed_rows, "CPU")
_library.impl("packed_rows", _elsewhere, "CUDA")
torch.library.register_fake("ecoflap::packed_rows", _without_data, lib=_library)
