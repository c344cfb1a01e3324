"""Compute at once what follows from no input of a graph, so that torch can make a graph of models that look at sizes.

Each of these is a mode: it is asked at every function of torch that is called while it lasts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

Function = Callable[..., Any]
SIZED = ("__getitem__", "view", "reshape", "expand")
"""Functions that take sizes."""
PUTTING = ("scatter", "scatter_")
"""Functions that put one value into places."""


class ComputedAtOnce(TorchFunctionMode):
    """Computes at once what follows from no input.

    A model looks in Python at the grid or the size of an image: how many vectors it makes of it, and where they stand.
    While torch makes a graph no tensor has a value in Python, not even one that is written down in the code. Two
    things that say nothing of the result are left out, as ONNX knows neither: a check whether all of a mask is true,
    and a squeeze of an axis that is longer than 1. A difference is written as a sum, for the same reason, and what is
    put into places of a mask as a number, because a trace has no truth to put there.
    """

    def __torch_function__(
        self, func: Function, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "_is_all_true":
            return torch.tensor(True)
        if name == "squeeze" and _is_longer_than_one(*args, **given):
            return args[0]
        if name in ("rsub", "__rsub__"):
            return args[1] + -args[0]
        if name in PUTTING:
            args = [int(one) if isinstance(one, bool) else one for one in args]
            given = {key: int(one) if isinstance(one, bool) else one for key, one in given.items()}
        if name in SIZED and torch._C._get_tracing_state() is None:
            args = (args[0], *pytree.tree_map(_as_number, tuple(args[1:])))
        if any(_is_of_an_input(one) for one in pytree.tree_leaves((args, given))):
            return func(*args, **given)
        with _disable_current_modes():
            return func(*args, **given)


class SizesAsNumbers(TorchFunctionMode):
    """Reads the sizes of tensors as numbers: a trace has tensors for them, which Python cannot round."""

    def __torch_function__(
        self, func: Function, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, torch.Size):
            return made
        return torch.Size([int(size) if isinstance(size, Tensor) else size for size in made])


class ListOfOne(TorchFunctionMode):
    """Makes a list of the vectors of all images together, where a model makes one of each image's: graphs have none.

    What the model does with the list is the same: it strings the vectors together.
    """

    def __torch_function__(
        self, func: Function, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.unbind, Tensor.__len__) and args[0].ndim == 3 and args[0].is_floating_point():
            return 1 if func is Tensor.__len__ else (args[0].flatten(0, 1),)
        return func(*args, **(kwargs or {}))


def _is_of_an_input(one: Any) -> bool:
    """Say whether something stands for what is known when a graph runs: torch has its own types for that."""
    if isinstance(one, Tensor):
        return type(one) is not Tensor or bool(torch._C._functorch.is_functorch_wrapped_tensor(one))
    return isinstance(one, torch.SymInt | torch.SymBool | torch.SymFloat)


def _as_number(one: Any) -> Any:
    """Write a size, or a bound of a slice, as a number where it is a tensor that follows from no input."""
    if isinstance(one, slice):
        return slice(*(_as_number(bound) for bound in (one.start, one.stop, one.step)))
    if not isinstance(one, Tensor) or one.ndim or one.dtype.is_floating_point or one.dtype == torch.bool:
        return one
    if _is_of_an_input(one):
        return one
    with _disable_current_modes():
        return int(one)


def _is_longer_than_one(tensor: Tensor, dim: Any = None) -> bool:
    size = tensor.shape[dim] if isinstance(dim, int) and tensor.ndim else None
    return isinstance(size, int) and size != 1
