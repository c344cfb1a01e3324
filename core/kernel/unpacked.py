"""Define ``torch.ops.ecoflap.unpacked(packed, outputs, inputs, dtype)``: a packed matrix made dense.

A graph that is compiled or exported can hold it where a model looks at a weight: ``PackedWeight``, which stands for a
dense matrix otherwise, cannot be made in a graph. Where only its type is looked at, as by T5, the graph drops it.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.matrix import unpack
from ecoflap.core.kernel.order import shape_of

_library = torch.library.Library("ecoflap", "FRAGMENT")
_library.define("unpacked(Tensor packed, SymInt outputs, SymInt inputs, ScalarType dtype) -> Tensor")


def unpacked(packed: UInt8[Tensor, "bytes"], outputs: int, inputs: int, dtype: torch.dtype) -> Float[Tensor, "out in"]:
    """Decode a matrix.

    :raises KernelError: Where it is another than it is taken for, or is damaged.
    """
    shape = shape_of(packed)
    if (shape.outputs, shape.inputs, shape.dtype) != (outputs, inputs, dtype):
        raise KernelError(
            f"the packed weights are [{shape.outputs}, {shape.inputs}] of {shape.dtype}, and not [{outputs}, {inputs}] "
            f"of {dtype}"
        )
    return unpack(packed)


def _without_data(packed: Tensor, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty(outputs, inputs, dtype=dtype)


_library.impl("unpacked", unpacked, "CPU")
torch.library.register_fake("ecoflap::unpacked", _without_data, lib=_library)
