"""Let a model run without its products: each gives zeros of the right shape, whatever its weights are or are not.

What a forward does with tokens, masks and positions is done as ever, so it goes the way that it goes with weights. A
model that has none yet, on the ``meta`` device, is lent some that are one number each.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

PRODUCTS: frozenset[Any] = frozenset({
    functional.linear, torch.addmm, torch.Tensor.addmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm, functional.conv1d,
    functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d,
    functional.scaled_dot_product_attention,
})  # fmt: skip
"""Every function of torch that costs as much as weights are large, and attention."""
_SMALL = 1 << 20
"""Bytes of a tensor that is lent whole: a table of positions, frequencies."""


def zeros_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Give zeros of the shape and type that a function gives, which is not computed."""
    tensors = [value for value in pytree.tree_leaves((args, dict(kwargs))) if isinstance(value, Tensor)]
    return pytree.tree_map_only(
        Tensor,
        lambda one: torch.zeros(one.shape, dtype=one.dtype, device=tensors[0].device),
        _bare(function, args, kwargs),
    )


def _bare(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a function on the shapes of tensors alone."""
    bare_args, bare_kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    return function(*bare_args, **bare_kwargs)


class WithoutProducts(TorchFunctionMode):
    """Stands at every function of torch while a model runs: products give zeros, and what is called is counted.

    It notes whether complex numbers are made, whether a loop goes over what was found in a tensor, such as the experts
    that a router chose, and by how much tensors are padded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.has_complex = self.loops_over_found = False
        self.pads: list[tuple[Any, ...]] = []
        self._found: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _takes_experts(func, args):
            made = torch.zeros((), dtype=args[0].dtype, device=args[0].device).expand(_bare(func, args, {}).shape)
        else:
            made = zeros_of(func, args, kwargs or {}) if func in PRODUCTS else func(*args, **(kwargs or {}))
        if func.__name__ != "__get__":  # an attribute, such as a shape
            self.calls[func.__name__] += 1
        self.has_complex |= isinstance(made, Tensor) and made.is_complex()
        self._note_found(func, args, made)
        if func is functional.pad:
            self.pads.append(tuple(args[1] if len(args) > 1 else (kwargs or {})["pad"]))
        return made

    def _note_found(self, func: Callable[..., Any], args: tuple[Any, ...], made: Any) -> None:
        if func.__name__ == "nonzero" and isinstance(made, Tensor):
            self._found[id(made)] = made
        self.loops_over_found |= func.__name__ in ("__iter__", "unbind") and id(args[0]) in self._found


def _takes_experts(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Say whether the experts of all tokens are taken side by side, which is as large as no memory is."""
    if func is not Tensor.__getitem__ or not isinstance(args[0], nn.Parameter):
        return False
    return args[0].ndim > 2 and isinstance(args[1], Tensor) and args[1].ndim > 0


@contextmanager
def lent_weights(model: nn.Module) -> Iterator[None]:
    """Put, for a while, a tensor of one number in the place of each that is on ``meta``, with its shape."""
    lent: dict[int, Tensor] = {}
    spaces = [space for module in model.modules() for space in _spaces(module)]
    before = [dict(space) for space in spaces]
    for space in spaces:
        for name, value in space.items():
            if isinstance(value, Tensor) and value.is_meta:
                space[name] = lent.setdefault(id(value), _lent(value))
    try:
        yield
    finally:
        for space, content in zip(spaces, before, strict=True):
            space.update(content)


def _spaces(module: nn.Module) -> list[dict[str, Any]]:
    """Give the dictionaries of a module that hold tensors; some models keep one as a plain attribute."""
    return [module._parameters, module._buffers, module.__dict__]


def _lent(tensor: Tensor) -> Tensor:
    """Give a tensor of one number in the place of one that is on ``meta``.

    The number is there once, but in small tensors that are no weights: models write into some of their own, as into the
    frequencies of rotary positions that are others for long texts.
    """
    number = torch.full((), float(tensor.is_floating_point())).to(tensor.dtype)
    made = number.expand(tensor.shape)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=False)
    return made.clone() if tensor.nbytes <= _SMALL else made
