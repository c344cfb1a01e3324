"""Tensors among nested values, such as a block's arguments and outputs, or a batch."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ecoflap.core.contracts.records import Batch


def batch_on(batch: Batch, device: str) -> Batch:
    """Bring the tensors of a batch to a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def numbers_in(batch: Batch) -> int:
    """Count the numbers in the tensors of a batch."""
    return sum(value.numel() for value in batch.values() if isinstance(value, Tensor))


def times_as_large(batch: Batch, first: Batch) -> float:
    """Say how many times as large as another a batch is, by the tensor that is so most: its text, if not its images."""
    sizes = {name: value.numel() for name, value in first.items() if isinstance(value, Tensor)}
    shares = (
        value.numel() / sizes[name] for name, value in batch.items() if isinstance(value, Tensor) and sizes.get(name)
    )
    return max(shares, default=1.0)


def map_tensors(values: Any, change: Callable[[Any], Any], kinds: type[Any] | tuple[type[Any], ...] = Tensor) -> Any:
    """Change each tensor among nested values, such as a block's arguments or output.

    :param kinds: What is changed, where it is something else that stands for a tensor.
    """
    return pytree.tree_map(
        lambda value: change(value) if isinstance(value, kinds) else value, values, is_leaf=_is_cache
    )


def _is_cache(value: Any) -> bool:
    """Say whether it is a cache of keys and values. It is left whole: some transformers versions let torch copy it."""
    return hasattr(value, "get_seq_length")


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a block's output, which may be a tensor, a tuple, a list or a mapping of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
