"""Let packed weights be used where a tensor is expected, decoded only when someone looks at them.

Not every model calls the modules whose weights it has: EVA multiplies with ``self.qkv.weight`` itself, and T5 asks for
``self.wo.weight.dtype`` in each forward. A product with such a weight goes to the packed one; its shape and type are
known without decoding; everything else is done with the decoded tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.matrix import unpack
from ecoflap.core.kernel.order import shape_of

_KNOWN = {
    *(getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_cpu", "is_cuda", "is_meta", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("ndim", "requires_grad", "shape")),
    *(Tensor.dim, Tensor.is_floating_point, Tensor.numel, Tensor.size),
}
"""What is known of a packed weight without decoding it."""


_WRITING = {
    "__set__",
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "and", "div", "mul", "or", "sub", "truediv")),
}
"""Functions that change a tensor; beside them all whose names end in ``_``."""


class PackedWeight(Tensor):
    """Stands for the dense matrix; a copy in memory of its own is what ``clone`` and every other function give.

    :param packed: The matrix in the kernel's order.
    """

    _packed: Tensor

    def __new__(cls: type["PackedWeight"], packed: UInt8[Tensor, "bytes"]) -> "PackedWeight":
        shape = shape_of(packed)
        made: PackedWeight = Tensor._make_wrapper_subclass(cls, (shape.outputs, shape.inputs), dtype=shape.dtype)
        made._packed = packed
        return made

    def __init__(self, packed: UInt8[Tensor, "bytes"]) -> None:
        """Take what :meth:`__new__` has taken."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.linear:
            return _product(*args, **(kwargs or {}))
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return _decoded(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _decoded(func, args, kwargs)


def _product(
    input: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """Multiply as ``torch.nn.functional.linear`` does."""
    if isinstance(weight, PackedWeight) and not isinstance(input, PackedWeight):
        product: Tensor = torch.ops.ecoflap.packed_linear(input, weight._packed, bias, weight.shape[0])
        return product
    return torch.nn.functional.linear(_dense(input), _dense(weight), bias)


def _decoded(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    target = args[0] if args else next(iter((kwargs or {}).values()), None)
    if _writes(func) and isinstance(target, PackedWeight):
        raise KernelError(
            "packed weights cannot be written to. Change them in a model that was loaded with weights='dense', or give "
            "the layer others by load_state_dict."
        )
    args, kwargs = tree_map_only(PackedWeight, _dense, (tuple(args), dict(kwargs or {})))
    return func(*args, **kwargs)


def _writes(func: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument: by its name, as torch has it."""
    name = func.__name__.partition(".")[0]
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _WRITING


def _dense(weight: Tensor) -> Tensor:
    return unpack(weight._packed) if isinstance(weight, PackedWeight) else weight
