"""Let a model run without its products: each gives zeros of the right shape, whatever its weights are or are not.

What a forward does with tokens, masks and positions is done as ever, so it goes the way that it goes with weights. A
model that has none yet, on the ``meta`` device, is lent some that are one number each.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

PRODUCTS: frozenset[Any] = frozenset({
    functional.linear, torch.addmm, torch.Tensor.addmm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
    torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.baddbmm, torch.Tensor.baddbmm, functional.conv1d,
    functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d,
    functional.scaled_dot_product_attention,
})  # fmt: skip
"""Every function of torch that costs as much as weights are large, and attention."""


def zeros_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Give zeros of the shape and type that a function gives, which is not computed."""
    tensors = [value for value in pytree.tree_leaves((args, dict(kwargs))) if isinstance(value, Tensor)]
    bare_args, bare_kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, dict(kwargs)))
    made = function(*bare_args, **bare_kwargs)
    return pytree.tree_map_only(
        Tensor, lambda one: torch.zeros(one.shape, dtype=one.dtype, device=tensors[0].device), made
    )


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
    number = torch.full((), float(tensor.is_floating_point())).to(tensor.dtype)
    made = number.expand(tensor.shape)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
