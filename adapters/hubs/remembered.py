"""Remember what was found of a model for as long as the model is there and is made of what it was made of then."""

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """Finds something of a model once, and gives it again for that very model.

    To watch a model run takes seconds where it is large, and a command asks many times for what is seen. Models are
    held weakly, so what was found of one goes with it; a model in which a module or a parameter was put in the place of
    another is looked at anew.

    :param find: Finds it. What it gives may hold modules of the model, and not the model itself, which would then stay.
    """

    def __init__(self, find: Callable[[nn.Module], Found]) -> None:
        self._find = find
        self._found: WeakKeyDictionary[nn.Module, tuple[list[ref[object]], Found]] = WeakKeyDictionary()

    def __call__(self, model: nn.Module) -> Found:
        """Give what is found of a model."""
        parts = _parts(model)
        seen = self._found.get(model)
        if seen is None or not _are(seen[0], parts):
            seen = self._found[model] = [ref(part) for part in parts], self._find(model)
        return seen[1]


def _parts(model: nn.Module) -> list[object]:
    """List the modules and parameters of a model in their order, those that are tied as often as they have names."""
    return [*model.modules(), *(parameter for _, parameter in model.named_parameters(remove_duplicate=False))]


def _are(seen: list[ref[object]], parts: list[object]) -> bool:
    return len(seen) == len(parts) and all(one() is part for one, part in zip(seen, parts, strict=True))
