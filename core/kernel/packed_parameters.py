"""Have a module of any class hold parameters packed: it stays what it was, and multiplies with what stands for them.

An ``nn.Linear`` is replaced, by :class:`~ecoflap.core.kernel.packed_module.PackedLinear`. Other modules do more than
multiply: an attention, or experts. Such a module becomes one of a subclass of its own class, of the same forward, where
a parameter's name gives what stands for the packed matrices.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.matrix import cast, pack_dense
from ecoflap.core.kernel.order import Shape, shape_of
from ecoflap.core.kernel.packed_experts import PackedExperts
from ecoflap.core.kernel.packed_linear import multiplied
from ecoflap.core.kernel.packed_module import DELETED, DenseState, followed, leaving
from ecoflap.core.kernel.packed_weight import PackedWeight

GIVEN = "{} of this {} is packed: put another module in its place, or give it other weights by load_state_dict"


@dataclass(frozen=True)
class Held:
    """Says how a parameter lies packed: as matrices of one size, one behind the other.

    :param shape: Of the dense parameter.
    :param transposed: Whether its last two axes are ``[in, out]``.
    :param ends: Behind how many bytes each matrix ends.
    :param each: What the first of them is; the others differ in what they keep.
    :param kept: How many weights are kept in all.
    """

    shape: tuple[int, ...]
    transposed: bool
    ends: tuple[int, ...]
    each: Shape
    kept: int

    @classmethod
    def of(
        cls, memory: UInt8[Tensor, "bytes"], ends: Sequence[int], shape: Sequence[int], transposed: bool = False
    ) -> "Held":
        """Read what the matrices say of themselves."""
        found = [shape_of(memory[first:last]) for first, last in pairwise((0, *ends))]
        return cls(tuple(shape), transposed, tuple(ends), found[0], sum(one.kept for one in found))

    def matrices(self, memory: UInt8[Tensor, "bytes"]) -> list[UInt8[Tensor, " _"]]:
        """Give each matrix where it lies."""
        return [memory[first:last] for first, last in pairwise((0, *self.ends))]

    def stand_in(self, memory: UInt8[Tensor, "bytes"]) -> PackedWeight | PackedExperts:
        """Give what stands for the dense parameter."""
        if len(self.shape) == 3:
            return PackedExperts(memory, self.ends, self.each, self.transposed)
        return PackedWeight(self.matrices(memory), self.each, self.transposed)

    def split(self, weight: Float[Tensor, "*shape"]) -> list[Float[Tensor, "out in"]]:
        """Divide a dense parameter into its matrices ``[out, in]``."""
        parts = weight.reshape(len(self.ends), -1, weight.shape[-1])
        return [part.T if self.transposed else part for part in parts]


class PackedParameters(DenseState):
    """Holds some parameters packed, which cannot be trained; a state dict has them dense, under their names.

    It is the first ancestor of a class that :func:`hold_packed` makes of another one.
    """

    packs: ClassVar[type[nn.Module]]
    """The class that it was made of."""
    held: dict[str, Held]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a parameter in the place of packed ones."""
        if name in self.__dict__.get("held", {}):
            raise KernelError(GIVEN.format(name, self.packs.__name__))
        super().register_parameter(name, param)

    def memory(self, name: str) -> UInt8[Tensor, "bytes"]:
        """Give the packed matrices of a parameter."""
        found: Tensor = self.get_buffer(f"packed_{name}")
        return found

    def extra_repr(self) -> str:
        said = [super().extra_repr()]
        for name, held in self.held.items():
            share = 1 - held.kept / max(1, torch.Size(held.shape).numel())
            values = "" if held.each.values == "exact" else f", {held.each.values}"
            dtype = dtype_name(held.each.dtype)
            said.append(f"{name}: {list(held.shape)}, sparsity={share:.3f}, {dtype}{values}")
        return "\n".join(filter(None, said))

    __repr__ = nn.Module.__repr__  # a Conv1D has one of its own, which says nothing of this

    def __reduce__(self) -> tuple[Any, ...]:
        """Be copied and stored by the class that this was made of."""
        return _without_state, (self.packs, tuple(self.held)), self.__getstate__()

    def _hold(self, name: str, memory: UInt8[Tensor, "bytes"], held: Held) -> None:
        self.held = {**self.held, name: held}
        self.register_buffer(f"packed_{name}", memory, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedParameters":
        """Follow ``.to(dtype)``, a matrix after the other; ``.to(device)`` is refused."""
        for name, held in self.held.items():
            dtype = followed(fn, held.each.dtype)
            if dtype != held.each.dtype:
                again = [cast(one, dtype) for one in held.matrices(self.memory(name))]
                self._put(name, again)
        super()._apply(leaving(fn, [self.memory(name) for name in self.held]), recurse)
        return self

    def _put(self, name: str, matrices: Sequence[UInt8[Tensor, " _"]]) -> None:
        """Take other packed matrices of the same sizes."""
        held, memory = self.held[name], torch.cat(list(matrices))
        ends = list(accumulate(map(len, matrices)))
        self._hold(name, memory, Held.of(memory, ends, held.shape, held.transposed))

    def _dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: held.shape for name, held in self.held.items()}

    def _held_in(self) -> Collection[str]:
        return [f"packed_{name}" for name in self.held]

    def _decoded(self, name: str) -> Float[Tensor, "*shape"]:
        return self.held[name].stand_in(self.memory(name)).decoded().contiguous()

    def _pack(self, name: str, weight: Float[Tensor, "*shape"]) -> None:
        held = self.held[name]
        weight = weight.detach().to(held.each.dtype)
        self._put(name, [pack_dense(part, values=held.each.values) for part in held.split(weight)])


class PackedConv1D(PackedParameters):
    """Multiplies as transformers' ``Conv1D`` did, which holds its weight ``[in, out]``."""

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        if torch.is_autocast_enabled("cpu"):
            x = x.to(self.held["weight"].each.dtype)
        own: Any = self  # a Conv1D, whose attributes no type checker knows
        return multiplied(x, own.packed_weight, own.bias, own.nf)


class PackedEmbedding(PackedParameters, nn.Embedding):
    """Gives rows of a matrix that it holds packed, each decoded when it is asked for."""

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch in"]:
        rows: Tensor = torch.ops.ecoflap.packed_rows(
            self.packed_weight, input, self.embedding_dim, self.held["weight"].each.dtype
        )
        return rows


def is_conv1d(kind: type[nn.Module]) -> bool:
    """Say whether a class is transformers' ``Conv1D``; it need not be installed."""
    return kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"


def hold_packed(
    module: nn.Module, name: str, memory: UInt8[Tensor, "bytes"], ends: Sequence[int], transposed: bool = False
) -> None:
    """Have a module hold one of its parameters packed, in place; all else of it stays, its hooks too.

    :param memory: The parameter's matrices in the kernel's order, of one size, one behind the other.
    :param ends: Behind how many bytes each ends.
    :param transposed: Whether the module holds them ``[in, out]``.
    """
    shape = module._parameters.pop(name).shape  # type: ignore[union-attr]
    is_first = not isinstance(module, PackedParameters)
    kind: Any = type(module) if is_first else module.packs
    module.held = {} if is_first else module.held  # type: ignore[assignment]
    module.__class__ = _class_of(kind, (*module.held, name))  # type: ignore[misc]
    assert isinstance(module, PackedParameters)
    module._hold(name, memory, Held.of(memory, ends, shape, transposed))


@cache
def _class_of(kind: Any, names: tuple[str, ...]) -> type[nn.Module]:
    """Make the class of modules of a kind that hold such parameters packed."""
    members = {"packs": kind, "__module__": __name__, "__doc__": kind.__doc__, **dict(map(_member, names))}
    made: type[nn.Module] = type(f"Packed{kind.__name__}", _bases(kind), members)
    return made


def _bases(kind: Any) -> tuple[type[nn.Module], ...]:
    """Give what such a class is made of: an embedding of a class of its own, as Gemma's, does something to the rows."""
    if kind is nn.Embedding:
        return (PackedEmbedding,)
    if issubclass(kind, nn.Embedding):
        return kind, PackedEmbedding
    return PackedConv1D if is_conv1d(kind) else PackedParameters, kind


def _member(name: str) -> tuple[str, property]:
    def given(self: PackedParameters) -> Tensor:
        return self.held[name].stand_in(self.memory(name))

    def changed(self: PackedParameters, value: object) -> None:
        raise KernelError(GIVEN.format(name, self.packs.__name__))

    def deleted(self: PackedParameters) -> None:
        raise KernelError(DELETED.format(f"{name} of this {self.packs.__name__}"))

    said = f"Give what stands for the dense {name}; writing to it is refused."
    return name, property(given, changed, deleted, doc=said)


def _without_state(kind: Any, names: tuple[str, ...]) -> nn.Module:
    made = _class_of(kind, names)
    return made.__new__(made)
