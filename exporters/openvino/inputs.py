"""See how large the inputs of each pruned matrix get, on the data that the model was pruned by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Batch
from ecoflap.core.model.parameter_masks import parameter_and_part
from ecoflap.exporters.shared.seen_inputs import seen_inputs


class LargestInput:
    """Keeps max |x| of each input over all tokens.

    :param in_features: The length of one input.
    """

    def __init__(self, in_features: int) -> None:
        self.in_features = in_features
        self._largest = torch.zeros(in_features)

    @property
    def largest(self) -> Float32[Tensor, " in"]:
        return self._largest

    def add(self, inputs: Float[Tensor, "... in"]) -> None:
        rows = inputs.detach().reshape(-1, self.in_features)
        if len(rows):
            self._largest = torch.maximum(self._largest, rows.abs().amax(0).float())

    def merge(self, other: "LargestInput") -> None:
        self._largest = torch.maximum(self._largest, other._largest.to(self._largest.device))

    def to(self, device: torch.device | str) -> "LargestInput":
        self._largest = self._largest.to(device)
        return self


@dataclass(eq=False)
class Fed:
    """Says how large what is fed to some matrices gets; matrices that are fed the same tensor have the same object.

    :param largest: max |x| of each input.
    :param heaviest: max |W| over all weights of those matrices that an input is multiplied by.
    """

    largest: Float32[Tensor, " in"]
    heaviest: Float32[Tensor, " in"]

    def add(self, largest: Float32[Tensor, " in"], weight: Float[Tensor, "out in"]) -> None:
        self.largest = torch.maximum(self.largest, largest.cpu())
        self.heaviest = torch.maximum(self.heaviest, weight.detach().abs().amax(0).float().cpu())


def fed_to(pruned: PrunedModel, batches: Sequence[Batch]) -> dict[str, Fed]:
    """Run a pruned model block by block, and see the inputs of its pruned layers.

    :return: By parameter; the rows of one may be several layers. Parameters that hold several matrices, and those that
        no token reached, are not there.
    """
    by_parameter: dict[str, Fed] = {}
    by_statistic: dict[int, Fed] = {}
    statistics = []  # held, because an id may be used again
    for layer, statistic in seen_inputs(pruned, batches, LargestInput):
        parameter, part = parameter_and_part(layer.name)
        if isinstance(part, int) or not statistic.largest.any():
            continue
        statistics.append(statistic)
        nothing = torch.zeros(statistic.in_features)
        same = by_statistic.setdefault(id(statistic), Fed(nothing, nothing))
        by_parameter.setdefault(parameter, same).add(statistic.largest, layer.weight)
    return by_parameter
