"""Let packed weights be used where a tensor is expected, decoded only when someone looks at them: :class:`StandIn`.

Not every model calls the modules whose weights it has: EVA multiplies with ``self.qkv.weight`` itself, and T5 asks for
``self.wo.weight.dtype`` in each forward. Shape and type are known without decoding; what else a stand-in can answer
from what is packed, above all a product, it says itself; all the rest is done with the decoded tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ecoflap.core.errors import KernelError

Answers = Mapping[Any, Callable[..., Any]]
"""By a function of torch or an operator's name, what answers it from what is packed, or gives ``NotImplemented``."""

_KNOWN = {
    *(getattr(Tensor, name).__get__ for name in ("device", "dtype", "is_cpu", "is_cuda", "is_meta", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("ndim", "requires_grad", "shape")),
    *(Tensor.__len__, Tensor.dim, Tensor.is_floating_point, Tensor.numel, Tensor.size),
}
"""What is known of a packed weight without decoding it."""

_WRITING = {
    "__set__",
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "and", "div", "mul", "or", "sub", "truediv")),
}
"""Functions that change a tensor; beside them all whose names end in ``_``."""


class StandIn(Tensor):
    """Stands for a dense tensor; a copy in memory of its own is what ``clone`` and every other function give."""

    answers: ClassVar[Answers] = {}

    def decoded(self) -> Tensor:
        """Give the dense tensor."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = cls.answers.get(func) or cls.answers.get(getattr(func, "__name__", None))
        found = NotImplemented if answer is None else answer(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return _with_decoded(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _with_decoded(func, args, kwargs)


def _with_decoded(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    target = args[0] if args else next(iter((kwargs or {}).values()), None)
    if _writes(func) and isinstance(target, StandIn):
        raise KernelError(
            "packed weights cannot be written to. Change them in a model that was loaded with weights='dense', or give "
            "the layer others by load_state_dict."
        )
    args, kwargs = tree_map_only(StandIn, lambda one: one.decoded(), (tuple(args), dict(kwargs or {})))
    return func(*args, **kwargs)


def _writes(func: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument: by its name, as torch has it."""
    name = func.__name__.partition(".")[0]
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _WRITING
