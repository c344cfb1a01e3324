"""Holding weights in another precision while they are used, and giving back the very same tensors afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def placed(tensors: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[None]:
    """Hold floating-point parameters and buffers in at least ``dtype``; afterwards their storage is the old one.

    :param dtype: None leaves everything as it is. A tensor that is already as wide stays as it is: a perturbed
        float32 weight in a bfloat16 model is not touched again.
    """
    narrow = [] if dtype is None else [tensor for tensor in tensors if _is_narrower(tensor, dtype)]
    originals = [tensor.data for tensor in narrow]
    for tensor in narrow:
        tensor.data = tensor.data.to(dtype)
    try:
        yield
    finally:
        for tensor, original in zip(narrow, originals, strict=True):
            tensor.data = original


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Its parameters and buffers, those of its submodules too."""
    yield from module.parameters()
    yield from module.buffers()


def _is_narrower(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < dtype.itemsize
