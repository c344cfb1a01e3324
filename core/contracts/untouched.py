"""Holds a part to leaving alone what it is given to look at, which is the model's own or shared with other layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ecoflap.core.errors import ModelError


@contextmanager
def untouched(who: str, weight: Tensor, seen: Mapping[type[Any], Any]) -> Iterator[None]:
    """Refuse what writes into its layer's weights, or into a tensor that a statistic offers as a member.

    PyTorch counts how often a tensor was written to, so that nothing has to be copied or compared for it.

    :param who: The part, for the message.
    :raises ModelError: With what was written into.
    """
    given = [("the weights", weight)]
    for kind, statistic in seen.items():
        members = getattr(statistic, "__dict__", {}).items()
        given += [(f"{kind.__name__}.{name}", one) for name, one in members if name[0] != "_" and _is_counted(one)]
    before = [(name, tensor, tensor._version) for name, tensor in given if _is_counted(tensor)]
    yield
    written = [name for name, tensor, version in before if tensor._version != version]
    if written:
        raise ModelError(
            f"{who} wrote into {' and '.join(written)}, which it is given to look at, and others look at next. Have "
            f"it write into what it has made itself: weight.abs().mul_(…) and not weight.abs_().mul_(…)"
        )


def _is_counted(member: Any) -> bool:
    return isinstance(member, Tensor) and not member.is_inference()  # of those PyTorch does not count
