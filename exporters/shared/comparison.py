"""Compare what an exported file computes with what the model computes, output by output, within a tolerance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

from torch import Tensor

from ecoflap.core.contracts.records import Check, View
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import ModelError

Compute: TypeAlias = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""Gives the outputs of a view in its order, of inputs by their names."""


@dataclass(frozen=True)
class Difference:
    """Says how far one output of a file is from the model's.

    :param largest: The largest absolute difference; infinite where one is not a number and the other is.
    :param scale: The largest magnitude of the output in the model, among those that are finite.
    """

    output: str
    largest: float
    scale: float

    @property
    def share(self) -> float:
        """Give the largest difference in shares of the scale."""
        return self.largest and (self.largest / self.scale if self.scale else float("inf"))

    def is_over(self, tolerance: float) -> bool:
        """Say whether the difference is more than this share of the scale."""
        return not self.largest <= tolerance * self.scale


@dataclass(frozen=True)
class Comparison:
    """Holds a view of the model against a file that is to compute the same.

    :param examples: Inputs by name, of different sizes, in the types that the file takes.
    :param model: Computes the view in torch.
    :param file: Computes it from the file.
    :param runtime: What runs the file, such as ``onnxruntime``.
    """

    view: View
    examples: tuple[Mapping[str, Tensor], ...]
    model: Compute
    file: Compute
    runtime: str

    def check(self, file: str, tolerance: float, way_out: str) -> Check:
        """Compare all outputs on all examples, and tell of the one that is farthest off for its size.

        :param file: The file's name.
        :param tolerance: How far an output may be off, in shares of its largest magnitude.
        :param way_out: What a user may do about a file that is farther off.
        :raises ModelError: Where an output is farther off, or has another shape or type.
        """
        worst = self.worst()
        if worst.is_over(tolerance):
            raise ModelError(
                f"{file}: output {worst.output!r} in {self.runtime} is up to {worst.largest:.3g} from the model's, "
                f"{worst.share:.3g} of its largest magnitude, where tolerance is {tolerance:g}. The file was removed. "
                f"{way_out}"
            )
        return Check(file, self.view.name, self.runtime, worst.largest, tolerance * worst.scale)

    def worst(self) -> Difference:
        """Compare all outputs on all examples, and give the difference that is largest for its output's size.

        :raises ModelError: Where an output has another shape or type.
        """
        found = [difference for inputs in self.examples for difference in self._differences(inputs)]
        return max(found, key=lambda difference: difference.share)

    def _differences(self, inputs: Mapping[str, Tensor]) -> Iterator[Difference]:
        pairs = zip(self.view.outputs, self.model(inputs), self.file(inputs), strict=True)
        for name, expected, found in pairs:
            if (expected.shape, expected.dtype) != (found.shape, found.dtype):
                raise ModelError(
                    f"view {self.view.name!r}: output {name!r} is {_kind(found)} in {self.runtime} and "
                    f"{_kind(expected)} in the model, on inputs of sizes {sizes_text(inputs)}"
                )
            yield difference(name, expected, found)


def tolerance_problems(tolerance: float) -> Iterator[str]:
    """Say what is wrong with a tolerance."""
    if not (isfinite(tolerance) and tolerance >= 0):
        yield f"tolerance {tolerance} is no share of an output's size: write 0 or more, such as 1e-4."


def difference(output: str, expected: Tensor, found: Tensor) -> Difference:
    """Measure how far an output is off; entries that are equal count as equal where they are infinite or NaN too."""
    wanted, infinite = expected.detach().double(), float("inf")
    apart = (wanted - found.double()).abs().nan_to_num(nan=infinite, posinf=infinite)
    apart = apart.masked_fill(equal_entries(expected, found), 0)
    finite = wanted.abs().masked_fill(~wanted.isfinite(), 0)
    return Difference(output, *(float(one.max()) if one.numel() else 0.0 for one in (apart, finite)))


def equal_entries(one: Tensor, other: Tensor) -> Tensor:
    """Say of each entry whether it is equal in both tensors, or not a number in both."""
    return (one == other) | (one.isnan() & other.isnan())


def sizes_text(inputs: Mapping[str, Tensor]) -> str:
    """Write the sizes of inputs for a message, such as ``input_ids [3, 7]``."""
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {dtype_name(tensor.dtype)}"
