"""Products with weights that stay packed: importing this registers ``torch.ops.ecoflap.packed_linear``.

A process that loads a ``.pt2`` of a packed model needs no more of ecoflap than that.
"""

from ecoflap.core.kernel.packed_linear import packed_linear
from ecoflap.core.kernel.packed_module import PackedLinear

__all__ = ["PackedLinear", "packed_linear"]
