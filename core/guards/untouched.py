"""Holds a part to leaving alone what it is given to look at, which is the model's own or shared with other layers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from ecoflap.core.bits import INTEGERS
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import ModelError, first_of


@contextmanager
def untouched(who: str, weight: Tensor, seen: Statistics) -> Iterator[None]:
    """Refuse what writes into its layer's weights, or into a tensor that a statistic offers as a member.

    PyTorch counts how often a tensor was written to, but not what is written by way of ``.data`` or numpy: so sums of
    its bits are compared too, which takes a fraction of a nanosecond a number, and nothing has to be copied.

    :param who: The part, for the message.
    :raises ModelError: With what was written into.
    """
    given, members = {"the weights": weight}, list[tuple[str, Any, str, Tensor]]()
    if seen.dense_weight is not None and seen.dense_weight is not weight:
        given["the dense weights"] = seen.dense_weight
    for kind, statistic in seen.items():
        offered = [(name, one) for name, one in getattr(statistic, "__dict__", {}).items() if name[0] != "_"]
        members += [
            (f"{kind.__name__}.{name}", statistic, name, one) for name, one in offered if isinstance(one, Tensor)
        ]
    given |= {called: one for called, _, _, one in members}
    cure = "Have it write into what it has made itself: weight.abs().mul_(…) and not weight.abs_().mul_(…)"
    with settings_put_back(), unwritten(who, given, cure, counting=True):
        yield
    replaced = [called for called, statistic, name, one in members if getattr(statistic, name, None) is not one]
    if replaced:  # another tensor; what was None or counts is a statistic's own to fill in
        raise ModelError(
            f"{who} has put something else in the place of {first_of(replaced)}, which others look at next. "
            f"Have it keep what it makes in a variable of its own"
        )


@contextmanager
def unwritten(who: str, given: Mapping[str, Tensor], cure: str, *, counting: bool) -> Iterator[None]:
    """Refuse what writes into tensors, as :func:`untouched` says.

    :param given: By what the message calls them.
    :param cure: What its author is to do instead.
    :param counting: Whether a write that has left every bit as it was is one, as PyTorch counts: a model's forward may
        clamp a parameter of its own.
    """
    written_since = watched(given, counting=counting)
    yield
    written = written_since()
    if written:
        raise ModelError(
            f"{who} wrote into {first_of(written)}, which it is given to look at, and others look at next. {cure}"
        )


def watched(given: Mapping[str, Tensor], *, counting: bool) -> Callable[[], list[str]]:
    """Look at tensors, and give what says later which of them have been written to."""
    before = [(name, tensor, _seen(tensor, counting)) for name, tensor in given.items()]
    return lambda: [name for name, tensor, seen in before if not _is_same(seen, _seen(tensor, counting))]


@contextmanager
def modes_put_back(model: nn.Module) -> Iterator[None]:
    """Put back behind a part which of a model's modules train, which parameters want gradients, and torch's settings.

    A module that trains drops some of what it gives, so that masks would depend on who had looked at the model before.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with settings_put_back():
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, is_wanted in wanted:
                if parameter.requires_grad != is_wanted:
                    with suppress(RuntimeError):  # of whole numbers, which nothing but another check can refuse
                        parameter.requires_grad = is_wanted


@contextmanager
def settings_put_back() -> Iterator[None]:
    """Put back behind a part what torch has for all of the process: whether it follows gradients, what type of numbers
    it makes by default, and by how many threads it computes, on which last bits of sums depend.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def _seen(tensor: Tensor, counting: bool) -> tuple[Any, Tensor]:
    """Give what tells whether a tensor was written to."""
    return (tensor.dtype, tensor.shape, writes(tensor) if counting else None), _sums_of_bits(tensor)


def _is_same(before: tuple[Any, Tensor], now: tuple[Any, Tensor]) -> bool:
    return bool(before[0] == now[0] and torch.equal(before[1].cpu(), now[1].cpu()))


def writes(tensor: Tensor) -> int | None:
    """Give how often a tensor was written to, as PyTorch counts it; None of one of inference, of which it does not."""
    return None if tensor.is_inference() else tensor._version


def _sums_of_bits(tensor: Shaped[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Sum each row as whole numbers of its bits, which wrap around; give nothing of one whose bits are no such rows."""
    if tensor.layout is not torch.strided or tensor.element_size() not in INTEGERS:
        return torch.empty(0, dtype=torch.int64)
    rows = tensor.detach()
    if rows.ndim == 2 and rows.stride(0) < rows.stride(1):
        rows = rows.t()  # columns lie in one piece, and are read as fast
    with suppress(RuntimeError):  # rows that lie apart, or have bytes left over
        return rows.view(torch.int64).sum(-1)
    bits = rows.view(INTEGERS[rows.element_size()])
    return bits.sum(-1, dtype=bits.dtype)
