"""Compare two models by the shapes of their tensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn


@dataclass(frozen=True)
class ShapeDifference:
    """Says where the shapes of two models differ.

    :param name: The first tensor that has another shape in one than in the other, or is in one only.
    :param one: Its shape in the first model as text, such as ``[32, 64]``; ``missing`` where it has no such tensor.
    :param other: The same of the second model.
    :param count: How many tensors differ, this one included.
    """

    name: str
    one: str
    other: str
    count: int


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a model's state dict has as the model itself has it: parameters and the buffers that are saved.

    A state dict decodes weights that are packed; here they are left out.
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, tensor


def shapes_of(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """Give the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def first_difference(
    one: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]
) -> ShapeDifference | None:
    """Compare shapes by name, in the first model's order, then the second's; give None where all agree."""
    different = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if not different:
        return None
    name = different[0]
    return ShapeDifference(name, _text(one.get(name)), _text(other.get(name)), len(different))


def _text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
