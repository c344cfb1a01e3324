"""A metric may come from anywhere, so its answer is looked at before anything is made of it."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.select import is_finite
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import Metric
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import ModelError
from ecoflap.core.guards.untouched import untouched
from ecoflap.core.pruning.pruner_answer import of_another_kind


def numbers_of(metric: Metric, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
    """Give the number that a metric has for each weight.

    :raises ModelError: Where it gives something else, or what is NaN or infinite, or writes into what it is given.
    """
    name = f"the metric {type(metric).__name__}"
    with blaming(name), untouched(name, weight, seen):
        values: Any = metric(weight, seen)
    if isinstance(values, Tensor) and (kind := of_another_kind(values, weight.device)) is not None:
        raise ModelError(f"{name} gave a tensor {kind}")
    if not isinstance(values, Tensor) or values.shape != weight.shape or not _are_numbers(values):
        found = f"{values.dtype} of {tuple(values.shape)}" if isinstance(values, Tensor) else f"{values!r:.100}"
        raise ModelError(f"{name} gave {found}; it gives one floating-point number for each weight, in 16 bits or more")
    if not is_finite(values) and is_finite(weight):
        raise ModelError(
            f"{name} gave NaN or infinite numbers for weights that are finite. Look at its formula, as for a division "
            f"by what may be zero, or at the layer's inputs, which may not be finite"
        )
    return values


def _are_numbers(values: Tensor) -> bool:
    """Say whether torch can compare these: in floating point, and in more than eight bits."""
    return values.is_floating_point() and values.element_size() > 1
