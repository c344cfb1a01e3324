"""Pruned matrices and what products with them must be, for the tests of the kernels."""

import pytest
import torch
from torch import Tensor

from ecoflap.core.kernel import packed_linear as _op  # noqa: F401 - registers the operator
from ecoflap.core.kernel.library import Library, opened

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""By how much of itself a number changes when it is rounded, at most."""
SMALLEST = {torch.float32: 2.0**-125, torch.bfloat16: 2.0**-125, torch.float16: 2.0**-24}


def library() -> Library:
    found = opened()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def paths() -> list[object]:
    """Every path's name; one that cannot be taken here is skipped with the reason."""
    found = opened()
    if isinstance(found, str):
        return [pytest.param("portable", marks=pytest.mark.skip(reason=found))]
    return [
        pytest.param(path.name, marks=pytest.mark.skip(reason=f"{path.name}: {path.lacks}") if path.lacks else ())
        for path in found.paths()
    ]


def usable() -> list[str]:
    found = opened()
    return [] if isinstance(found, str) else [path.name for path in found.paths() if not path.lacks]


def pruned(outputs: int, inputs: int, sparsity: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight.masked_fill(torch.rand(outputs, inputs, generator=generator) < sparsity, 0).to(dtype)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def assert_right(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """No element may be further from the exact one than sums in float32 and one rounding can bring it."""
    expected = exact(x, weight, bias)
    sizes = x.double().abs() @ weight.double().abs().T + (0 if bias is None else bias.double().abs())
    summing = (weight.shape[1] + 2) * 2.0**-24 * sizes
    allowed = summing + ROUNDING[y.dtype] * (expected.abs() + summing) + SMALLEST[y.dtype]
    assert y.shape == expected.shape
    assert bool(((y.double() - expected).abs() <= allowed).all())
