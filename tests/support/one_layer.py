"""What a pruner is given in its tests: one layer of no model, and statistics of inputs that a test makes up."""

from typing import Any

from torch import Tensor

from ecoflap.core.contracts.records import LayerPlace, Statistics

PLACE = LayerPlace("model.layers.0.weight", "language", "model.layers.0", 0, 0)


def seen(kind: type[Any], inputs: Tensor) -> Statistics:
    """Give the statistic of a type over some inputs, as a pruner is given it."""
    statistic = kind(inputs.shape[-1])
    statistic.add(inputs)
    return Statistics({kind: statistic})
