"""Define ``torch.ops.ecoflap.packed_linear(x, packed, bias, outputs)``: x W' + bias with a matrix that stays packed.

Small batches are multiplied by the library of kernels. Larger ones, and all where there is no library, go by panels:
some rows are decoded, and torch multiplies with them; one panel at a time is in memory. docs/kernel.md has where one
becomes faster than the other. :func:`multiplied` does the same and spares a token the way through torch's dispatcher.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd import forward_ad

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import aligned, unpack
from ecoflap.core.kernel.order import OUTPUTS, shape_of
from ecoflap.core.kernel.route import Route, route

try:
    from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._autograd import _profiler_enabled
    from torch._C._functorch import peek_interpreter_stack
except ImportError:  # they are torch's own, and not promised: without one of them all goes through the dispatcher

    def _is_looked_on() -> bool:
        return True

else:

    def _is_looked_on() -> bool:
        """Say whether something has to see an operator: gradients, modes, transforms as ``vmap``, traces, profiles."""
        modes = _len_torch_dispatch_stack() or _len_torch_function_stack() or peek_interpreter_stack()
        derived = torch.is_grad_enabled() or _is_in_dual_level()
        return bool(derived or modes or _get_tracing_state() or _profiler_enabled())


PANEL = 1 << 22
"""Bytes of decoded weights that are in memory at a time."""

UNTRAINED = (
    "the weights of this layer are packed: it can be run and not trained, and no gradient goes through it. Run it "
    "under torch.inference_mode(), or load the model with weights='dense'."
)

_library = torch.library.Library("ecoflap", "FRAGMENT")
_library.define("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt outputs) -> Tensor")
_library.define("untrained(Tensor gradient, SymInt[] shape) -> Tensor")


def multiplied(
    x: Float[Tensor, "*batch in"],
    packed: UInt8[Tensor, "bytes"],
    bias: Float[Tensor, " out"] | None,
    outputs: int,
) -> Float[Tensor, "*batch out"]:
    """Multiply as the operator does, and past torch's dispatcher where nobody looks on.

    The dispatcher takes 5 to 10 µs, and a layer of a small model is multiplied in less. So what stands here and in
    :func:`packed_linear` is what takes least time: a model has hundreds of layers, and each is asked at every token.

    :raises KernelError: As the operator does, and where a derivative is to go through it forward, as by ``jvp``.
    """
    if not torch.compiler.is_compiling():
        if not _is_looked_on() and _are_plain(x, packed, bias):
            return packed_linear(x, packed, bias, outputs)
        if _is_in_dual_level() and (_has_tangent(x) or (bias is not None and _has_tangent(bias))):
            raise KernelError(UNTRAINED)  # torch would take what an operator says nothing of for zero
    y: Tensor = torch.ops.ecoflap.packed_linear(x, packed, bias, outputs)
    return y


def _are_plain(x: Tensor, packed: Tensor, bias: Tensor | None) -> bool:
    """Say whether tensors lie in memory as they are, on the CPU, and are of no class of somebody's own."""
    if not (type(x) is type(packed) is Tensor and _lies(x) and _lies(packed)):
        return False
    return bias is None or (type(bias) in (nn.Parameter, Tensor) and _lies(bias))


def _lies(one: Tensor) -> bool:
    """Say whether all numbers of a tensor are in memory with their signs; torch has some in mind alone."""
    return one.is_cpu and one.layout is torch.strided and not one.is_neg() and not one._is_zerotensor()


def _is_in_dual_level() -> bool:
    """Say whether derivatives go forward somewhere."""
    return bool(getattr(forward_ad, "_current_level", -1) >= 0)


def _has_tangent(one: Tensor) -> bool:
    """Say whether a derivative goes forward through a tensor, which ``vmap`` may have wrapped."""
    wrapping: Any = torch._C._functorch
    while wrapping.is_batchedtensor(one):
        one = wrapping.get_unwrapped(one)
    return forward_ad.unpack_dual(one).tangent is not None


def packed_linear(
    x: Float[Tensor, "*batch in"],
    packed: UInt8[Tensor, "bytes"],
    bias: Float[Tensor, " out"] | None,
    outputs: int,
) -> Float[Tensor, "*batch out"]:
    """Multiply rows with a packed matrix, in its type; sums are float32, and in int8 whole numbers.

    :raises KernelError: Where the numbers do not fit each other, or the matrix is damaged.
    """
    if not (x.is_contiguous() and x.ndim):
        _refuse_scalar(x)
        x = _lying_well(x)
    *rows, inputs = x.shape
    y, batch = x.new_empty(*rows, outputs), math.prod(rows)
    taken = route()
    most = taken.batch(x.dtype)  # 0 where there is no library, and there may be no rows
    if batch > most:  # only now is it worth the time to look: int8 goes further
        most = taken.batch(x.dtype, shape_of(packed).values)
    multiply = _by_library if most and batch <= most else _by_panels
    multiply(taken, x, (batch, inputs, outputs), packed, bias, y)
    return y


def _by_library(
    taken: Route,
    x: Float[Tensor, "*batch in"],
    sizes: tuple[int, int, int],
    packed: Tensor,
    bias: Tensor | None,
    y: Float[Tensor, "*batch out"],
) -> None:
    """Multiply by the library, which checks what is given; where it refuses, what it was is looked for here.

    :param sizes: How many rows x has, of how many inputs, and how many outputs each gets.
    """
    assert taken.library is not None
    packed, (batch, inputs, outputs) = aligned(packed), sizes
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous() or len(bias) != outputs):
        _check(x, packed, bias, outputs)
        bias = bias.contiguous()
    if taken.library.functions.ecoflap_packed_linear(
        taken.number, packed.data_ptr(), packed.numel(), TYPES[x.dtype], outputs, inputs,
        x.data_ptr(), batch, inputs if x.is_contiguous() else x.stride(0),  # an axis of one has any stride
        None if bias is None else bias.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    ):  # fmt: skip
        said = taken.library.message
        _check(x, packed, bias, outputs)
        raise KernelError(said)


def _by_panels(
    taken: Route,
    x: Float[Tensor, "*batch in"],
    sizes: tuple[int, int, int],
    packed: Tensor,
    bias: Tensor | None,
    y: Float[Tensor, "*batch out"],
) -> None:
    """Decode some rows of the matrix at a time, and let torch multiply with them."""
    batch, inputs, outputs = sizes
    _check(x, packed, bias, outputs)
    rows, products = x.reshape(batch, inputs), y.view(batch, outputs)
    each = max(1, PANEL // max(1, OUTPUTS * inputs * x.itemsize)) * OUTPUTS
    for first in range(0, outputs, each):
        last = min(first + each, outputs)
        part = None if bias is None else bias[first:last]
        products[:, first:last] = torch.nn.functional.linear(rows, unpack(packed, first, last - first), part)


def _refuse_scalar(x: Tensor) -> None:
    if not x.ndim:
        raise KernelError("a packed layer multiplies rows, and is given a single number: x has no axis of its inputs")


def _lying_well(x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch in"]:
    """Give rows that lie one behind the other, each without gaps: equally far apart where they are a matrix."""
    lies_well = x.ndim == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    return x if lies_well else x.contiguous()


def _check(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> None:
    shape, inputs = shape_of(packed), x.shape[-1]
    if x.dtype != shape.dtype or (bias is not None and bias.dtype != shape.dtype):
        other = x.dtype if x.dtype != shape.dtype else f"a bias of {bias.dtype if bias is not None else None}"
        raise KernelError(f"the packed weights are {shape.dtype} and are given {other}: convert one, by .to(dtype)")
    if (outputs, inputs) != (shape.outputs, shape.inputs) or (bias is not None and bias.shape != (outputs,)):
        given = f"{inputs} inputs, {outputs} outputs and a bias of {None if bias is None else tuple(bias.shape)}"
        raise KernelError(f"the packed weights are [{shape.outputs}, {shape.inputs}] and are given {given}")


def _elsewhere(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    raise KernelError(
        f"packed weights are multiplied on the CPU, and these are on {packed.device} with x on {x.device}. Load the "
        f"model with weights='dense' to run it elsewhere."
    )


def _without_data(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    _refuse_scalar(x)
    return x.new_empty(*x.shape[:-1], outputs)


def _keep_shapes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shapes = [inputs[0].shape, None, output.shape[-1:], None]


def _gradients(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Ask for gradients by an operator: code that is compiled traces a backward pass that it may never run."""
    return tuple(
        torch.ops.ecoflap.untrained(gradient, shape) if is_needed else None
        for shape, is_needed in zip(context.shapes, context.needs_input_grad, strict=True)
    )


def _refused(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    raise KernelError(UNTRAINED)


def _gradient_without_data(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    return gradient.new_empty(shape)


_library.impl("packed_linear", packed_linear, "CPU")
_library.impl("packed_linear", _elsewhere, "CUDA")
torch.library.register_fake("ecoflap::packed_linear", _without_data, lib=_library)
torch.library.register_autograd("ecoflap::packed_linear", _gradients, setup_context=_keep_shapes, lib=_library)
_library.impl("untrained", _refused, "CPU")
torch.library.register_fake("ecoflap::untrained", _gradient_without_data, lib=_library)
