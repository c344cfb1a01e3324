"""Seeing the input of every prunable matrix, whether or not its module's hook fires.

Module hooks never fire for a packed ``in_proj_weight``, for the ``out_proj`` of ``nn.MultiheadAttention``, or for fused
q, k, v that a model hands to ``F.linear`` itself. All of them go through ``torch.nn.functional.linear``, so that is
where we look, matching by the identity of the weight.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer


@contextmanager
def watching(layers: Sequence[Layer], see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call ``see(layer, inputs)`` before every ``F.linear`` whose weight is one of ``layers``'.

    Identities are resolved on entry, so enter when the block starts, not before its weights are in place.
    """
    by_identity = {id(layer.weight): layer for layer in layers}
    original = functional.linear

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        layer = by_identity.get(id(weight))
        if layer is not None:
            see(layer, input)
        elif weight._base is not None and id(weight._base) in by_identity:
            name = by_identity[id(weight._base)].name
            raise ModelError(f"{name} is applied in slices to different inputs, which its adapter must declare")
        return original(input, weight, bias)

    functional.linear = linear
    try:
        yield
    finally:
        functional.linear = original


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention``'s fused inference path off: it never reaches ``F.linear``."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
