"""Say which types torch multiplies in by a program of its own here, which takes several times as long as float32."""

from types import MappingProxyType

import torch

_ASKED = MappingProxyType(
    {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
)  # of oneDNN, which multiplies matrices for torch on a CPU; a build without it does not say


def is_slow(dtype: torch.dtype) -> bool:
    """Say whether this CPU lacks products in a type, as one with AVX2 alone lacks those in bfloat16.

    One thread of such a CPU took 18 ms for 160 × 576 × 1536 in bfloat16, and 4 ms in float32.
    """
    asked = getattr(torch.ops.mkldnn, _ASKED[dtype], None) if dtype in _ASKED else None
    return asked is not None and not asked()


def slow_types() -> list[str]:
    """Name the types that are slow here."""
    return [str(dtype).removeprefix("torch.") for dtype in _ASKED if is_slow(dtype)]
