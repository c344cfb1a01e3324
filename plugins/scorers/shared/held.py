"""How much a scorer holds that has statistics of each block taken, as the plan has it of pruners."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ecoflap.core.contracts.protocols import LossStatistic
from ecoflap.core.forward.observation import bytes_of_statistic
from ecoflap.core.model.anatomy import Anatomy, Layer

_BYTES = 4
"""Of a number in float32, in which the plan counts."""


def held_with_statistics(anatomy: Anatomy, needs: Sequence[type[Any]], solving: Callable[[int, int], int]) -> int:
    """Count the numbers in float32 that are held at the most.

    These are the statistics of the block that needs most. Beside them is what is more: as many once more, while the
    statistics of several spans of batches are added, or what is held of one layer by what they are for.

    It is an upper bound: layers that share an input share its statistics, and are counted one by one.

    :param solving: Gives how many numbers are held of a layer of so many outputs and inputs.
    """
    layers = [layers for layers in anatomy.layers_of.values() if layers]
    statistics = max((_statistics_of(some, needs) for some in layers), default=0)
    largest = max((solving(*layer.shape) for some in layers for layer in some), default=0)
    return statistics + max(statistics, largest)


def _statistics_of(layers: Iterable[Layer], needs: Sequence[type[Any]]) -> int:
    """Count those of one block; sums of the loss' gradient lie with the record, and are counted there."""
    of_inputs = [need for need in needs if not issubclass(need, LossStatistic)]
    return sum(bytes_of_statistic(need, *layer.shape) for layer in layers for need in of_inputs) // _BYTES
