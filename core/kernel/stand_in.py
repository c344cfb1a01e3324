"""Let packed weights be used where a tensor is expected, decoded only when someone looks at them: :class:`StandIn`.

Not every model calls the modules whose weights it has: EVA multiplies with ``self.qkv.weight`` itself, and T5 asks for
``self.wo.weight.dtype`` in each forward. Shape and type are known without decoding; what else a stand-in can answer
from what is packed, above all a product, it says itself; all the rest is done with the decoded tensor. What shares
memory with that, as ``weight.data`` and ``weight[0]`` do, is a stand-in again: what is written to it would be lost.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

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
    """Stands for a dense tensor that cannot be written to; ``clone`` gives a copy that can."""

    answers: ClassVar[Answers] = {}
    _is_param = True
    """By it torch takes one for an ``nn.Parameter``, and ``get_parameter`` gives it: by that transformers saves it."""

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
        return _read_only(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _with_decoded(func, args, kwargs, [])


class DecodedView(StandIn):
    """Stands for a part or a view of a decoded tensor, and holds it.

    :param dense: Such as a row of it, or all of it turned.
    """

    _dense: Tensor
    _is_param = False

    def __new__(cls: type["DecodedView"], dense: Shaped[Tensor, "..."]) -> "DecodedView":
        # It has the tensor's own memory: torch takes that for the data of another, and asks nobody.
        made: DecodedView = Tensor._make_subclass(cls, dense)
        made._dense = dense
        return made

    def __init__(self, dense: Shaped[Tensor, "..."]) -> None:
        """Take what :meth:`__new__` has taken."""

    def decoded(self) -> Shaped[Tensor, "..."]:
        """Give the tensor itself."""
        return self._dense


def _read_only(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Call a function with decoded tensors; what it gives of their memory is to be read alone."""
    decoded: list[Tensor] = []
    found = _with_decoded(func, args, kwargs, decoded)
    memories = {one.untyped_storage()._cdata for one in decoded}

    def told(one: Tensor) -> Tensor:
        if isinstance(one, StandIn) or not _has_memory(one) or one.untyped_storage()._cdata not in memories:
            return one
        return DecodedView(one)

    return tree_map_only(Tensor, told, found)


def _has_memory(tensor: Tensor) -> bool:
    """Say whether a tensor has memory that can be looked at: not a sparse one, nor one inside of ``vmap``."""
    return tensor.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _with_decoded(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None, decoded: list[Tensor]
) -> Any:
    """Call a function with decoded tensors.

    :param decoded: Takes them.
    """
    kwargs = kwargs or {}
    first = args[0] if args else next(iter(kwargs.values()), None)
    writes = _writes(func, args, kwargs) or kwargs.get("inplace") is True
    written = tree_leaves([first if writes else None, kwargs.get("out")])
    if any(isinstance(one, StandIn) for one in written):
        raise KernelError(
            "packed weights cannot be written to. Change a copy, which clone() gives, or those of a model that was "
            "loaded with weights='dense', into which a LoRA is merged too, or embeddings='dense', the head's too; "
            "or give the layer others by load_state_dict."
        )

    def given(one: StandIn) -> Tensor:
        decoded.append(one.decoded())
        return decoded[-1]

    args, kwargs = tree_map_only(StandIn, given, (tuple(args), dict(kwargs)))
    return func(*args, **kwargs)


def _writes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a function changes its first argument: by its name, as torch has it."""
    name = func.__name__.partition(".")[0]
    if name == "requires_grad_":  # which is changed to what it is, where no gradient is asked for
        return bool([*args[1:], *kwargs.values(), True][0])
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _WRITING
