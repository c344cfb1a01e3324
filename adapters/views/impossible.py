"""Say which views no file can hold, by watching them run without weights, on a short text and on a long one.

What is written to a file is what ran on an example. A model that asks for the length of its text in Python, and does
more for a longer one, would be right at the example's length and silently wrong at others.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ecoflap.adapters.hubs.weightless import WithoutProducts, lent_weights
from ecoflap.adapters.views.view import BATCH
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import one_line

TIMES = (40, 20, 8, 5, 2)
"""By how much a text is made longer, the most that runs: from 8 tokens to more than 256, which is as long as a chunk
gets into which models cut a text."""
NO_SUCH_LENGTH = (IndexError, RuntimeError, ValueError)
"""What a model raises that ran on an example and reads no text of another length, as where it has fewer positions than
its configuration says: a position that is not there, shapes that do not fit, or what its own code says of it."""
WITH_PAST = "_with_past"
CHANGING = "its rotary positions are other ones once a text is long (rope_type: dynamic), and a file holds one kind"
COMPLEX = "it computes with complex numbers, as for rotary positions, which TorchScript files hold and ONNX has none of"

CHOOSING = "it runs in a loop over the experts that a router chose, and a file holds the choice of its example"

FILLING = "it fills its text up to a multiple that it computes in Python, and a file holds what one length lacks of it"


def views_impossible(views: Iterable[View], exporter: str, most: int | None) -> dict[str, str]:
    """Say of each view that cannot be written why.

    :param exporter: Whose files they would be: ``onnx`` or ``torchscript``.
    :param most: How many tokens the model reads at most; None where it does not say.
    """
    found: dict[str, str] = {}
    for view in views:
        begun = found.get(view.name.removesuffix(WITH_PAST))  # a step with a cache runs what a text without one runs
        found[view.name] = _why_not(view, exporter, most) if begun is None else begun
    return {name: why for name, why in found.items() if why}


def _why_not(view: View, exporter: str, most: int | None) -> str:
    if any("dynamic" in str(getattr(module, "rope_type", "")) for module in view.module.modules()):
        return CHANGING
    try:
        short = _watched(view, 1)
    except Exception as error:  # whatever a model does with what is not for it
        return f"it does not run on an example: {_in_short(error)}"
    if short.loops_over_found:
        return CHOOSING
    if short.has_complex and exporter == "onnx":
        return COMPLEX
    try:
        return _of_longer(view, short, most) or _of_filling(view, short)
    except Exception as error:  # what a model does at another length only may be anything
        return f"whether a file of it is right for texts of other lengths could not be checked: {_in_short(error)}"


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"


def _of_longer(view: View, short: WithoutProducts, most: int | None) -> str:
    for times in TIMES:
        if most is None or times * _length(view) <= most:
            try:
                return _of_lengths(short, _watched(view, times), times)
            except NO_SUCH_LENGTH:
                continue
    return ""


def _of_filling(view: View, short: WithoutProducts) -> str:
    """Say so where a text of one token less is padded otherwise; a step with a cache runs what a text does."""
    if view.name.endswith(WITH_PAST):
        return ""
    try:
        return "" if _watched(view, 1, less=1).pads == short.pads else FILLING
    except NO_SUCH_LENGTH:
        return ""


def _of_lengths(short: WithoutProducts, long: WithoutProducts, times: int) -> str:
    """Say so where more is done for a longer text."""
    if all(long.calls[name] <= short.calls[name] for name in long.calls):
        return ""
    return (
        f"it runs in a loop over its text, which is {short.calls.total()} operations for a short one and "
        f"{long.calls.total()} for one {times} times as long, and a file holds those of one length"
    )


def _watched(view: View, times: int, less: int = 0) -> WithoutProducts:
    """Run a view on the last row of its example, the one with padding, made so many times longer, less some tokens."""
    device = next((one.device for one in view.module.parameters() if not one.is_meta), torch.device("cpu"))
    watch = WithoutProducts()
    with torch.no_grad(), lent_weights(view.module), watch:
        view.module(*(_longer(view, name, times, less).to(device) for name in view.inputs))
    return watch


def _longer(view: View, name: str, times: int, less: int) -> Tensor:
    tensor = view.inputs[name]
    for axis, called in view.dynamic[name].items():
        length = tensor.shape[axis]
        is_batch = called == BATCH
        repeated = tensor if is_batch else torch.cat([tensor] * times, axis)
        tensor = repeated.narrow(axis, *((length - 1, 1) if is_batch else (0, times * length - less)))
    return tensor


def _length(view: View) -> int:
    """Give the length of all texts of a view's example together, which is no less than what one position gets to."""
    return sum({called: view.inputs[name].shape[axis] for name, axis, called in _lengths(view)}.values())


def _lengths(view: View) -> Iterator[tuple[str, int, str]]:
    for name, axes in view.dynamic.items():
        yield from ((name, axis, called) for axis, called in axes.items() if called != BATCH)
