"""Seeing the input of every prunable matrix, whether or not its module's hook fires.

Module hooks never fire for a packed ``in_proj_weight``, for the ``out_proj`` of ``nn.MultiheadAttention``, for fused
q, k, v that a model hands to ``F.linear`` itself, for an expert that is a slice of a parameter, nor for ``x @ W.T``.
All of them are products, so products are where we look: at ``F.linear``, and at those that compute ``a @ b``, or n of
them, matching what is multiplied by the place in memory that a layer's matrix has. ``torch.einsum``, ``tensordot`` and
``inner``, which say by a text or numbers what is multiplied with what, are not among them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer


class Picked(NamedTuple):
    """Which rows of a table were picked, such as an expert's tokens of all hidden states.

    :param of: How many rows the table has.
    """

    rows: Int64[Tensor, " rows"]
    of: int


See = Callable[[Layer, Tensor, Picked | None], None]
"""Takes a layer, its input, and what that was picked from, as far as it is known."""

_Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]
_SUMMED = {
    torch.addmm, Tensor.addmm, Tensor.addmm_, torch.addmv, Tensor.addmv, Tensor.addmv_,
    torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_, torch.addbmm, Tensor.addbmm, Tensor.addbmm_,
}  # fmt: skip
_REVERSED = {Tensor.__rmatmul__}
_PRODUCTS = {
    torch.mm, Tensor.mm, torch.mv, Tensor.mv, torch.bmm, Tensor.bmm,
    torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__,
} | _SUMMED | _REVERSED  # fmt: skip
_OPERANDS = ("input", "mat", "mat1", "batch1", "mat2", "batch2", "vec", "vec2", "other", "tensor2")
"""The names by which products take what they multiply, of each product in the order of its signature."""
_PICKS = {Tensor.__getitem__, torch.index_select, Tensor.index_select}


@contextmanager
def watching(layers: Sequence[Layer], see: See) -> Iterator[None]:
    """Call ``see`` before every product with the matrix of one of ``layers``, or with a view of it.

    Places are resolved on entry, so enter when the block starts, not before its weights are in place.

    :raises ModelError: Where a part of a layer's parameter is multiplied that is no layer.
    """
    matrices = Matrices(layers)
    products = _Products(matrices, see)
    with linear_seen(matrices, lambda layer, inputs: see(layer, inputs, products.picked(inputs))), products:
        yield


@contextmanager
def linear_seen(matrices: "Matrices", see: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Call ``see`` before every ``F.linear`` with one of these matrices.

    It is replaced, because torch's own functions in Python, as that of nn.MultiheadAttention, hide what they call from
    a mode.
    """
    original = functional.linear

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        layer = matrices.at(weight)
        if layer is not None:
            see(layer, input)
        return original(input, weight, bias)

    functional.linear = linear
    try:
        yield
    finally:
        functional.linear = original


class Matrices:
    """Knows which layer a tensor is by where it lies: it may be the layer's parameter, or any view that is its matrix.

    It holds the parameters, so that no other tensor takes their identity.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._parameters = {id(layer.parameter): layer.parameter for layer in layers}
        self._layers = {_place(layer.weight): layer for layer in layers}
        self._name_of = {id(layer.parameter): layer.name for layer in layers}

    def holds(self, tensor: Tensor) -> bool:
        """Say whether a tensor is one of the parameters, or a view of one."""
        return id(_whole(tensor)) in self._parameters

    def at(self, matrix: Tensor) -> Layer | None:
        """Give the layer that a matrix ``[out, in]`` is; None for a tensor of something else.

        :raises ModelError: Where it is another part of a layer's parameter.
        """
        if not self.holds(matrix):
            return None
        layer = self._layers.get(_place(matrix))
        if layer is None:
            name = self._name_of[id(_whole(matrix))]
            raise ModelError(f"{name} is applied in slices to different inputs, which its adapter must declare")
        return layer


def _columns(right: Tensor) -> Tensor:
    """Give the right side of a product as the matrix that it is used as: a vector is one column."""
    return right[:, None] if right.dim() == 1 else right


class _Products(TorchFunctionMode):
    """Listens to products other than ``F.linear``, and remembers which rows were picked from which tensor."""

    def __init__(self, matrices: Matrices, see: See) -> None:
        super().__init__()
        self._matrices, self._see = matrices, see
        self._picked: Picked | None = None
        self._masked: tuple[Tensor, Picked] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            named = kwargs or {}
            self._look(func, [*args, *(named[name] for name in _OPERANDS if name in named)])
        made = func(*args, **(kwargs or {}))
        if func in _PICKS:
            self._remember(args, made)
        return made

    def picked(self, inputs: Tensor) -> Picked | None:
        """Say which rows inputs were picked as: they, or what they were computed from, are what was picked last.

        An expert picks its tokens, and multiplies what becomes of them until the next expert picks its own.
        """
        fits = self._picked is not None and inputs.numel() == len(self._picked.rows) * inputs.shape[-1]
        return self._picked if fits else None

    def _look(self, func: Any, operands: list[Any]) -> None:
        """See the other side of a product ``a @ b`` in which one side is made of layers."""
        a, b = operands[1:3] if func in _SUMMED else operands[:2]
        if func in _REVERSED:
            a, b = b, a
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return
        if self._matrices.holds(b):
            self._multiplied(torch.atleast_2d(a), _columns(b).mT)
        elif self._matrices.holds(a):
            self._multiplied(_columns(b).mT, torch.atleast_2d(a))

    def _multiplied(self, inputs: Tensor, matrices: Tensor) -> None:
        """See inputs ``[…, in]`` of one matrix ``[out, in]``, or inputs ``[n, rows, in]`` of n of them."""
        pairs = [(inputs, matrices)] if matrices.dim() == 2 else zip(inputs, matrices, strict=True)
        for rows, matrix in pairs:
            layer = self._matrices.at(matrix)
            if layer is not None:
                self._see(layer, rows, self.picked(rows) if matrices.dim() == 2 else None)

    def _remember(self, args: tuple[Any, ...], made: Tensor) -> None:
        """Keep which rows are picked of a table of hidden states, by ``hidden[rows]`` or ``hidden[None, rows]``.

        The table may itself be what a mask has left, as where an image has experts of its own: ``hidden[is_image]``.
        """
        table, index = args[0], args[-1]
        if isinstance(index, tuple) and len(index) == 2 and index[0] is None:
            index = index[1]
        is_rows = isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64
        if is_rows and isinstance(table, Tensor) and table.dim() == 2 and table.is_floating_point():
            self._picked = self._of_all(table, Picked(index, len(table)))
        elif isinstance(index, Tensor) and index.dtype == torch.bool and table.dim() == 3 and index.dim() > 1:
            whole = index[..., 0] if index.dim() == 3 else index
            if whole is index or bool((index == whole[..., None]).all()):  # each position is left whole, or not at all
                self._masked = made.detach(), Picked(whole.reshape(-1).nonzero().flatten(), whole.numel())

    def _of_all(self, table: Tensor, picked: Picked) -> Picked:
        """Say which of all positions rows are, where they were picked of those that a mask has left."""
        if self._masked is None:
            return picked
        made, left = self._masked
        is_made = table.untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
        return Picked(left.rows[picked.rows], left.of) if is_made and picked.of == len(left.rows) else picked


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _place(tensor: Tensor) -> _Place:
    return id(_whole(tensor)), int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention``'s fused inference path off: it never reaches ``F.linear``."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
