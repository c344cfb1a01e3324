"""Keep on a disk what an optimiser knows of weights that lie there, whichever optimiser it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ecoflap.core.disk.on_disk import matrix_on_disk, zeros_on_disk


@contextmanager
def state_on_disk(optimiser: torch.optim.Optimizer, folder: Path) -> Iterator[None]:
    """Put what an optimiser keeps of matrices into files without a name.

    Zeros that are shaped as a weight, as Adam's moments are before its first step, are made there. What begins as
    something else, as momentum does, is put there behind the step that has made it.
    """
    step = optimiser.step

    @wraps(step)
    def stepped(_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with _ZerosOnDisk(folder):
            told = step(*args, **kwargs)
        for state in optimiser.state.values():
            state.update({key: _put_away(value, folder) for key, value in state.items()})
        return told

    space = optimiser.__dict__  # a scheduler's wrapper may already be there
    before = space.get("step")
    space["step"] = own = MethodType(stepped, optimiser)  # a method, as a scheduler that is made now looks for
    try:
        yield
    finally:
        if space.get("step") is own:
            del space["step"]
            if before is not None:
                space["step"] = before


class _ZerosOnDisk(TorchFunctionMode):
    """Makes zeros on a disk where torch is asked for those of a matrix's shape."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        like = args[0] if func is torch.zeros_like and args else None
        asked = {"memory_format": torch.preserve_format, **(kwargs or {})}
        is_plain = asked == {"memory_format": torch.preserve_format}
        if like is not None and is_plain and like.dim() > 1 and like.numel() and like.device.type == "cpu":
            return zeros_on_disk(like.shape, like.dtype, self._folder)
        return func(*args, **(kwargs or {}))


def _put_away(value: Any, folder: Path) -> Any:
    return matrix_on_disk(value, folder) if isinstance(value, Tensor) and value.device.type == "cpu" else value
