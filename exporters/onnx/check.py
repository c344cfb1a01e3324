"""Compares an exported ONNX file, run in onnxruntime, with the view of the torch model that it was made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecoflap.core.contracts.records import View
from ecoflap.core.errors import ModelError


@dataclass(frozen=True)
class Difference:
    """How far one output is from torch's.

    :param difference: The largest, absolute; infinite where one is not a number and the other is.
    :param scale: The largest magnitude of the output in torch.
    """

    output: str
    difference: float
    scale: float

    def over(self, tolerance: float) -> bool:
        return not self.difference <= tolerance * self.scale

    @property
    def relative(self) -> float:
        """To the scale."""
        return self.difference and self.difference / max(self.scale, float(np.finfo(np.float32).tiny))


def worst_difference(session: Any, view: View, examples: tuple[Mapping[str, Tensor], ...]) -> Difference:
    """The output that is farthest from torch's, for its own size, over all examples.

    :param session: An ``onnxruntime.InferenceSession``.
    :param examples: Inputs by name, in the types that the file has.
    """
    found = [one for inputs in examples for one in _differences(session, view, inputs)]
    return max(found, key=lambda one: one.relative)


def _differences(session: Any, view: View, inputs: Mapping[str, Tensor]) -> Iterator[Difference]:
    with torch.no_grad():
        expected = view.module(*inputs.values())
    sizes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    try:
        got = session.run(list(view.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
    except Exception as error:  # onnxruntime has a dozen classes of its own, with no common base
        raise ModelError(
            f"view {view.name!r}: onnxruntime cannot run it on inputs of sizes {sizes}: {error}"
        ) from error
    for name, ours, theirs in zip(view.outputs, got, expected, strict=True):
        reference = theirs.detach().numpy()
        if reference.shape != ours.shape:
            raise ModelError(
                f"view {view.name!r}: output {name!r} has the shape {ours.shape} in onnxruntime and {reference.shape} "
                f"in torch, on inputs of sizes {sizes}"
            )
        yield _difference(name, reference, ours)


def _difference(name: str, reference: Any, ours: Any) -> Difference:
    """Entries that are equal count as such where they are infinite or not numbers too."""
    wide, other = reference.astype(np.float64), ours.astype(np.float64)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(wide - other))
    largest = float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))
    finite = np.abs(wide[np.isfinite(wide)])
    return Difference(name, largest, float(finite.max(initial=0.0)))
