"""Stand for a matrix that is packed: :class:`PackedWeight`, with which a product is the packed one.

A product may be written as ``F.linear(x, weight)``, or as ``x @ weight.T``; GPT-2 has ``addmm(bias, x, weight)`` with a
weight ``[in, out]``. An attention that holds q, k and v in one parameter multiplies with all of it, or with some.
"""

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ecoflap.core.kernel.matrix import unpack
from ecoflap.core.kernel.order import Shape, shape_of
from ecoflap.core.kernel.packed_linear import multiplied
from ecoflap.core.kernel.stand_in import StandIn


class PackedWeight(StandIn):
    """Stands for a dense matrix, or for several of one size that lie one above the other.

    :param packed: The matrix in the kernel's order, or several.
    :param each: What each of them is, where that is known; otherwise its header is read.
    :param transposed: Whether it stands for ``[in, out]``.
    """

    _packed: tuple[Tensor, ...]
    _each: Shape
    _transposed: bool

    def __new__(
        cls: type["PackedWeight"],
        packed: UInt8[Tensor, " _"] | Sequence[UInt8[Tensor, " _"]],
        each: Shape | None = None,
        transposed: bool = False,
    ) -> "PackedWeight":
        several = (packed,) if isinstance(packed, Tensor) else tuple(packed)
        each = shape_of(several[0]) if each is None else each
        shape = len(several) * each.outputs, each.inputs
        made: PackedWeight = Tensor._make_wrapper_subclass(cls, shape[::-1] if transposed else shape, dtype=each.dtype)
        made._packed, made._each, made._transposed = several, each, transposed
        return made

    def __init__(
        self,
        packed: UInt8[Tensor, " _"] | Sequence[UInt8[Tensor, " _"]],
        each: Shape | None = None,
        transposed: bool = False,
    ) -> None:
        """Take what :meth:`__new__` has taken."""

    def decoded(self) -> Float[Tensor, "rows columns"]:
        """Give the dense matrix."""
        dense = torch.cat([unpack(one) for one in self._packed]) if len(self._packed) > 1 else unpack(self._packed[0])
        return dense.T if self._transposed else dense

    def multiplied(
        self, x: Float[Tensor, "*batch in"], bias: Float[Tensor, " out"] | None = None
    ) -> Float[Tensor, "*batch out"]:
        """Multiply rows with the matrix ``[out, in]``, and add a bias."""
        if torch.is_autocast_enabled("cpu"):  # torch's own products cast what they read; the weights stay as they are
            x = x.to(self._each.dtype)
        outputs = self._each.outputs
        biases = [None] * len(self._packed) if bias is None else bias.split(outputs)
        parts = [multiplied(x, one, b, outputs) for one, b in zip(self._packed, biases, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Answer ``F.linear``."""
    if not isinstance(weight, PackedWeight) or weight._transposed or isinstance(input, StandIn):
        return NotImplemented
    return weight.multiplied(input, bias)


def _rows(
    ids: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **gradients: Any,
) -> Any:
    """Answer ``F.embedding``; what is said of gradients matters to none here."""
    if not isinstance(weight, PackedWeight) or weight._transposed or len(weight._packed) > 1 or max_norm is not None:
        return NotImplemented
    return torch.ops.ecoflap.packed_rows(weight._packed[0], ids, weight.shape[1], weight.dtype)


def _address(weight: PackedWeight) -> int:
    """Answer ``data_ptr``, by which tied weights are told."""
    return weight._packed[0].data_ptr()


def _matmul(x: Any, weight: Any, **others: object) -> Any:
    """Answer ``x @ weight`` where that is ``[in, out]``."""
    if not isinstance(weight, PackedWeight) or not weight._transposed or isinstance(x, StandIn) or others:
        return NotImplemented
    return weight.multiplied(x)


def _addmm(bias: Any, x: Any, weight: Any, **others: object) -> Any:
    """Answer ``bias + x @ weight``; a bias of another shape than a row, and factors, are torch's to add."""
    is_row = isinstance(bias, Tensor) and not isinstance(bias, StandIn) and bias.shape == weight.shape[-1:]
    if not isinstance(weight, PackedWeight) or not weight._transposed or isinstance(x, StandIn):
        return NotImplemented
    return weight.multiplied(x, bias) if is_row and not others else NotImplemented


def _turned(weight: PackedWeight, *dims: int, **others: object) -> Any:
    """Answer ``weight.T`` and ``weight.transpose(0, 1)``."""
    if others or (dims and sorted(dim % 2 for dim in dims) != [0, 1]):
        return NotImplemented
    return PackedWeight(weight._packed, weight._each, not weight._transposed)


def _split(weight: PackedWeight, sizes: int | Sequence[int], dim: int = 0) -> Any:
    """Answer a split of rows where it falls between matrices."""
    rows, outputs = weight.shape[0], weight._each.outputs
    if isinstance(sizes, int):
        sizes = [min(sizes, rows - first) for first in range(0, rows, sizes)] if sizes > 0 else []
    if weight._transposed or dim % 2 or sum(sizes) != rows or any(size % outputs or not size for size in sizes):
        return NotImplemented
    left, parts = list(weight._packed), []
    for size in sizes:
        count = size // outputs
        parts.append(PackedWeight(left[:count], weight._each))
        left = left[count:]
    return tuple(parts)


def _chunk(weight: PackedWeight, chunks: int, dim: int = 0) -> Any:
    """Answer ``weight.chunk(3)``."""
    return _split(weight, -(-weight.shape[0] // max(1, chunks)), dim)


def _attention_of_torch() -> Any:
    """Give torch's own attention, told that it is given ordinary tensors.

    It gives itself away whole to a tensor of another kind; told that there is none, it goes on, and only its products
    and splits come to the packed weights.
    """
    function = functional.multi_head_attention_forward
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    told = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    told.__kwdefaults__ = function.__kwdefaults__
    return told


PackedWeight.answers = {
    functional.linear: _linear,
    functional.embedding: _rows,
    Tensor.data_ptr: _address,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.t, Tensor.t, Tensor.T.__get__, Tensor.mT.__get__), _turned),  # type: ignore[attr-defined]
    **dict.fromkeys((torch.transpose, Tensor.transpose), _turned),
    **dict.fromkeys((torch.split, Tensor.split), _split),
    **dict.fromkeys((torch.chunk, Tensor.chunk), _chunk),
    functional.multi_head_attention_forward: _attention_of_torch(),
}
