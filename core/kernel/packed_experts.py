"""Stand for experts that are one parameter of three axes, each a packed matrix: :class:`PackedExperts`.

A mixture of experts picks those that its tokens are sent to. ``experts[3]`` is a :class:`PackedWeight`; products with
many of them, ``bmm`` and transformers' ``grouped_mm``, go expert by expert, so that none is decoded as a whole.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.order import Shape
from ecoflap.core.kernel.packed_weight import PackedWeight
from ecoflap.core.kernel.stand_in import StandIn


class PackedExperts(StandIn):
    """Stands for the dense experts ``[experts, out, in]``.

    :param memory: All experts in the kernel's order, one behind the other.
    :param ends: Behind how many bytes each of them ends.
    :param each: What each of them is.
    :param transposed: Whether it stands for ``[experts, in, out]``.
    :param chosen: The numbers of the experts that it stands for, where it is not all in their order; one may be there
        more than once.
    """

    _memory: Tensor
    _ends: Sequence[int]
    _each: Shape
    _transposed: bool
    _chosen: Sequence[int]

    def __new__(
        cls: type["PackedExperts"],
        memory: UInt8[Tensor, "bytes"],
        ends: Sequence[int],
        each: Shape,
        transposed: bool = False,
        chosen: Sequence[int] | None = None,
    ) -> "PackedExperts":
        chosen = range(len(ends)) if chosen is None else chosen
        matrix = (each.inputs, each.outputs) if transposed else (each.outputs, each.inputs)
        made: PackedExperts = Tensor._make_wrapper_subclass(cls, (len(chosen), *matrix), dtype=each.dtype)
        made._memory, made._ends, made._each, made._transposed, made._chosen = memory, ends, each, transposed, chosen
        return made

    def __init__(
        self,
        memory: UInt8[Tensor, "bytes"],
        ends: Sequence[int],
        each: Shape,
        transposed: bool = False,
        chosen: Sequence[int] | None = None,
    ) -> None:
        """Take what :meth:`__new__` has taken."""

    def decoded(self) -> Float[Tensor, "experts rows columns"]:
        """Give the dense experts."""
        if not self._chosen:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.stack([one.decoded() for one in self.matrices()])

    def matrix(self, expert: int, transposed: bool) -> PackedWeight:
        """Give one expert by its number in the parameter."""
        first = self._ends[expert - 1] if expert else 0
        return PackedWeight(self._memory[first : self._ends[expert]], self._each, transposed)

    def matrices(self) -> Iterator[PackedWeight]:
        """Yield each expert as it is seen."""
        for expert in self._chosen:
            yield self.matrix(expert, self._transposed)

    def only(self, chosen: Sequence[int]) -> "PackedExperts":
        """Stand for some of these experts, by their numbers among them."""
        numbers = [self._chosen[one] for one in chosen]
        return PackedExperts(self._memory, self._ends, self._each, self._transposed, numbers)

    def turned(self) -> "PackedExperts":
        """Stand for the same experts, each transposed."""
        return PackedExperts(self._memory, self._ends, self._each, not self._transposed, self._chosen)

    def multiplied(self, x: Float[Tensor, "experts rows in"]) -> Float[Tensor, "experts rows out"]:
        """Multiply rows with each expert ``[out, in]``; one that is there more than once has all its rows at once."""
        places: dict[int, list[int]] = {}
        for place, expert in enumerate(self._chosen):
            places.setdefault(expert, []).append(place)
        parts = [self.matrix(expert, False).multiplied(x[where]) for expert, where in places.items()]
        order = [place for where in places.values() for place in where]
        nothing = x.new_empty(0, x.shape[1], self._each.outputs)
        return torch.cat([nothing, *parts])[torch.tensor(order, dtype=torch.int64).argsort()]


def _numbers(index: Tensor) -> Any:
    """Read numbers on which it depends which experts run."""
    if getattr(torch.compiler, "is_exporting", bool)():
        raise KernelError(
            "which of the packed experts run is read from the data, and torch.export cannot follow that. Load the "
            "model with weights='dense' to export it."
        )
    return index.tolist()


def _item(experts: PackedExperts, index: Any) -> Any:
    """Answer ``experts[3]``, ``experts[:2]``, and ``experts[tensor([3, 0, 3])]``."""
    if isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool and index.dim() < 2:
        index = _numbers(index)
    if isinstance(index, int) and not isinstance(index, bool):
        return experts.matrix(experts._chosen[index], experts._transposed)
    if isinstance(index, slice):
        index = range(len(experts._chosen))[index]
    return experts.only(index) if isinstance(index, list | range) else NotImplemented


def _select(experts: PackedExperts, dim: int, index: Tensor) -> Any:
    """Answer ``index_select``."""
    return _item(experts, index.reshape(-1)) if dim % 3 == 0 else NotImplemented


def _each(experts: PackedExperts, dim: int = 0) -> Any:
    """Answer ``for expert in experts``."""
    return tuple(experts.matrices()) if dim % 3 == 0 else NotImplemented


def _iterated(experts: PackedExperts) -> Iterator[PackedWeight]:
    return experts.matrices()


def _turned(experts: PackedExperts, *dims: int, **others: object) -> Any:
    """Answer ``experts.mT`` and ``experts.transpose(1, 2)``."""
    is_of_matrices = not dims or sorted(dim % 3 for dim in dims) == [1, 2]
    return experts.turned() if is_of_matrices and not others else NotImplemented


def _bmm(a: Any, b: Any, **others: object) -> Any:
    """Answer ``bmm(x, experts)`` where they are ``[experts, in, out]``, and ``bmm(experts, x.mT)`` otherwise."""
    if others:
        return NotImplemented
    if isinstance(b, PackedExperts) and b._transposed and not isinstance(a, StandIn):
        return b.multiplied(a)
    if isinstance(a, PackedExperts) and not a._transposed and not isinstance(b, StandIn):
        return a.multiplied(b.mT).mT
    return NotImplemented


def _matmul(a: Any, b: Any, **others: object) -> Any:
    """Answer ``x @ experts`` where neither side is repeated for the other."""
    fits = all(isinstance(one, Tensor) and one.dim() == 3 for one in (a, b)) and len(a) == len(b)
    return _bmm(a, b, **others) if fits else NotImplemented


def _grouped(x: Any, experts: Any, offs: Tensor | None = None, **others: object) -> Any:
    """Answer ``grouped_mm``: each expert ``[in, out]`` with its rows of x, which end where ``offs`` says.

    Rows behind the last end are no expert's, and are zero.
    """
    fits = isinstance(experts, PackedExperts) and experts._transposed and not isinstance(x, StandIn)
    if not fits or offs is None or any(other is not None for other in others.values()):
        return NotImplemented
    first, parts = 0, []
    for expert, last in zip(experts._chosen, _numbers(offs), strict=True):
        if last > first:
            parts.append(experts.matrix(expert, False).multiplied(x[first:last]))
        first = last
    return torch.cat([*parts, x.new_zeros(len(x) - first, experts._each.outputs)])


def _address(experts: PackedExperts) -> int:
    """Answer ``data_ptr``, by which transformers asks whether memory is aligned for torch's own ``grouped_mm``."""
    return experts._memory.data_ptr()


_GROUPED = [getattr(functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None)]
PackedExperts.answers = {
    Tensor.__getitem__: _item,
    Tensor.__iter__: _iterated,
    Tensor.data_ptr: _address,
    **dict.fromkeys((torch.unbind, Tensor.unbind), _each),
    **dict.fromkeys((torch.index_select, Tensor.index_select), _select),
    **dict.fromkeys((torch.transpose, Tensor.transpose, Tensor.mT.__get__), _turned),  # type: ignore[attr-defined]
    **dict.fromkeys((torch.bmm, Tensor.bmm), _bmm),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **{function: _grouped for function in _GROUPED if function is not None},
    "grouped_mm_fallback": _grouped,  # transformers' own, which it may define later than this
}  # fmt: skip
