"""Say which parameters can run packed, and of which matrices they are made: :class:`Form`.

Most are one matrix ``[out, in]``. Transformers' ``Conv1D`` holds ``[in, out]``; an attention may hold q, k and v in one
parameter, which are three, so that one of them can be multiplied alone; experts are one each of three axes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ecoflap.core.bits import full_mask, pack_mask
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import Values
from ecoflap.core.kernel.matrix import pack_dense, pack_rows, shape_for
from ecoflap.core.kernel.order import Shape, bits_between
from ecoflap.core.kernel.packed_parameters import is_conv1d
from ecoflap.core.packed.read_packed import StoredPacked

_LINEARS = frozenset({"FalconLinear", "NonDynamicallyQuantizableLinear"})
"""Kinds of ``nn.Linear`` whose own forward multiplies with the weight as it is; others may take it apart."""
_Q_K_V = frozenset({"q_proj_weight", "k_proj_weight", "v_proj_weight"})


@dataclass(frozen=True)
class Form:
    """Says of which matrices a parameter is made.

    :param matrices: How many of one size there are, one behind the other along its first axis.
    :param transposed: Whether each is held ``[in, out]``.
    """

    matrices: int = 1
    transposed: bool = False

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Give the outputs and inputs of one matrix."""
        rows, columns = torch.Size(shape).numel() // max(1, self.matrices * shape[-1]), shape[-1]
        return (columns, rows) if self.transposed else (rows, columns)

    def whole(self, shapes: Sequence[Shape]) -> Shape:
        """Say what matrices are together."""
        outputs, kept = sum(one.outputs for one in shapes), sum(one.kept for one in shapes)
        return Shape(shapes[0].dtype, outputs, shapes[0].inputs, kept, shapes[0].values)

    def most_bytes(self, whole: Shape) -> int:
        """Say how many bytes a parameter takes at most, of which only the sum of what its matrices keep is known."""
        if self.matrices == 1:
            return whole.nbytes
        each = Shape(whole.dtype, whole.outputs // self.matrices, whole.inputs, 0, whole.values)
        filled = 64  # a matrix's values are filled up to so many bytes
        return self.matrices * (each.nbytes + filled) + whole.kept * whole.itemsize

    def split(self, weight: Float[Tensor, "*shape"]) -> Iterator[Float[Tensor, "out in"]]:
        """Yield the matrices ``[out, in]`` of a dense parameter."""
        for part in weight.detach().reshape(self.matrices, -1, weight.shape[-1]):
            yield part.T if self.transposed else part


def form_of(module: nn.Module, attribute: str) -> Form | None:
    """Say of which matrices a parameter is made with which its module multiplies; None where that is not known."""
    weight = getattr(module, attribute)
    if weight.ndim == 3:
        return _of_experts(module, attribute)
    if weight.ndim != 2:
        return None
    if isinstance(module, nn.Linear):
        plain = type(module) is nn.Linear or type(module).__name__ in _LINEARS
        return Form() if plain and attribute == "weight" else None
    if isinstance(module, nn.Embedding):
        return Form() if attribute == "weight" and not is_computed(module) else None
    if is_conv1d(type(module)):
        return Form(transposed=True) if attribute == "weight" else None
    if attribute == "in_proj_weight" and len(weight) % 3 == 0:
        return Form(matrices=3)
    return Form() if isinstance(module, nn.MultiheadAttention) and attribute in _Q_K_V else None


def is_computed(module: nn.Embedding) -> bool:
    """Say whether an embedding's class makes its weight itself, as transformers makes sinusoids of positions.

    Nothing of it is trained, and a library may compute it anew where it reads a model that it has saved. Whether it is
    frozen says nothing of that: a model that was read has it unfrozen.
    """
    kinds = type(module).__mro__
    own = kinds[: kinds.index(nn.Embedding)]
    return any(name.endswith("_weight") and callable(made) for kind in own for name, made in vars(kind).items())


def _of_experts(module: nn.Module, attribute: str) -> Form | None:
    """Say how experts lie, which are along the first of three axes; None for what is not known to be experts."""
    weight, transposed = getattr(module, attribute), getattr(module, "is_transposed", None)
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if transposed is None and up is not None and down is not None and up.ndim == down.ndim == 3:
        # Before transformers says it: gate and up are twice as many outputs as down has inputs.
        transposed = up.shape[2] == 2 * down.shape[1]
    if transposed is None and type(module).__name__.endswith("ParallelExperts"):
        transposed = False
    return None if transposed is None else Form(len(weight), bool(transposed))


def pack_into(
    memory: UInt8[Tensor, "bytes"], form: Form, weight: Float[Tensor, "*shape"], values: Values
) -> tuple[int, ...]:
    """Pack a dense parameter, a matrix after the other; give behind how many bytes each ends."""
    ends = [0]
    for part in form.split(weight):
        last = ends[-1] + shape_for(part, values).nbytes
        pack_dense(part, memory[ends[-1] : last], values)
        ends.append(last)
    return tuple(ends[1:])


def pack_stored_into(memory: UInt8[Tensor, "bytes"], form: Form, whole: Shape, stored: StoredPacked) -> tuple[int, ...]:
    """Pack what a file has of a parameter, a matrix after the other; give behind how many bytes each ends.

    :param memory: As many bytes as it takes at most.
    :raises KernelError: Where mask and values do not fit each other, or a value that is to be int8 is not finite.
    """
    ends = [0]
    for part in _parts(form, whole, stored):
        shape = Shape(whole.dtype, whole.outputs // form.matrices, whole.inputs, len(part.values), whole.values)
        last = ends[-1] + shape.nbytes
        pack_rows(memory[ends[-1] : last], shape, part.bits, part.values)
        ends.append(last)
    return tuple(ends[1:])


def _parts(form: Form, whole: Shape, stored: StoredPacked) -> Iterator[StoredPacked]:
    """Divide what is stored into matrices ``[out, in]``; of one that is transposed the dense weights are made."""
    if form == Form():
        yield stored
        return
    outputs, inputs, done = whole.outputs // form.matrices, whole.inputs, 0
    for number in range(form.matrices):
        mask = bits_between(stored.bits, number * outputs * inputs, outputs * inputs)
        values = stored.values[done : done + int(mask.sum())]
        done += len(values)
        if form.transposed:
            mask, values = _turned(mask.reshape(inputs, outputs), values)
        yield StoredPacked(pack_mask(mask), values)
    if done != len(stored.values):
        raise KernelError("the mask keeps fewer weights than there are values")


def _turned(mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    dense = values.new_zeros(mask.shape)
    dense[mask] = values
    return mask.T, dense.T[mask.T]


def as_unpruned(stored: Tensor) -> StoredPacked:
    """Give a dense parameter as one of which nothing is pruned."""
    return StoredPacked(full_mask(stored.numel()), stored.reshape(-1))
