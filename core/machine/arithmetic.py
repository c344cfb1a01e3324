"""Say which types this CPU cannot multiply in by itself, so that a library is slow in them, or not exact."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch

from ecoflap.core.dtypes import dtype_name

_ASKED = MappingProxyType(
    {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
)  # of oneDNN, which multiplies matrices for torch on a CPU; a build without it does not say


def is_slow(dtype: torch.dtype) -> bool:
    """Say whether this CPU lacks products in a type, as one with AVX2 alone lacks those in bfloat16.

    One thread of such a CPU took 18 ms for 160 × 576 × 1536 in bfloat16, and 4 ms in float32.
    """
    asked = getattr(torch.ops.mkldnn, _ASKED[dtype], None) if dtype in _ASKED else None
    return asked is not None and not asked()


def lacks_eight_bits(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether this is an x86 that is known to have no sums of products of eight bits (VNNI).

    Libraries add such products in sixteen bits there, and cut off what is larger.

    :param cpuinfo: Where Linux tells what a CPU has; elsewhere it is not known.
    """
    text = cpuinfo.read_text("utf-8", "replace") if cpuinfo.is_file() else ""
    flags = next((line.partition(":")[2].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni"} & set(flags)


def slow_types() -> list[str]:
    """Name the types that are slow here."""
    return [dtype_name(dtype) for dtype in _ASKED if is_slow(dtype)]


@contextmanager
def not_cast() -> Iterator[None]:
    """Compute in the types that weights have meanwhile, whatever ``torch.autocast`` of CPU or CUDA the caller is in.

    It keeps the casts of weights that it has made, and weights that are pruned would still be multiplied as they were.
    So would one of ours within it, be that enabled or not, until the outermost ends: there none keeps any.
    """
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda") if depth > 1 else ():
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let a GPU multiply and convolve float32 as it is meanwhile; afterwards it is as it was.

    TF32, which convolutions have unless told otherwise, and products in some containers, keeps eleven of its 24 bits:
    differences of losses, which zeroth order is made of, and Gram matrices are lost in that.
    """
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    try:
        before: list[tuple[Any, str, Any]] = [(one, "allow_tf32", one.allow_tf32) for one in (matmul, cudnn)]
    except RuntimeError:  # said by the names that torch has from 2.9 on, by which alone it is read then
        before = [(where, "fp32_precision", where.fp32_precision) for where in (matmul, cudnn.conv)]
    try:
        for where, name, _ in before:
            setattr(where, name, False if name == "allow_tf32" else "ieee")
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
