"""Asks the pruner whose choice another one mends, and holds its answer to the budget."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import PrunerOptions
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.pruning.pruner_answer import asked


def needs_with(inner: Pruner, own: type[Any]) -> tuple[type[Any], ...]:
    """Give the statistics that the inner pruner needs, and one more."""
    return tuple(dict.fromkeys((*options_of(PrunerOptions, inner).needs, own)))


def looks_at_dense(inner: Pruner) -> bool:
    """Say whether the inner pruner looks at the dense weights."""
    looks: bool = options_of(PrunerOptions, inner).dense_weights
    return looks


def changes_weights(inner: Pruner) -> bool:
    """Say whether the inner pruner changes weights that it keeps."""
    changes: bool = options_of(PrunerOptions, inner).changes_weights
    return changes


def held_by(inner: Pruner, outputs: int, inputs: int) -> int:
    """Tell how many numbers the inner pruner holds while it prunes a layer."""
    held: int = options_of(PrunerOptions, inner).held_numbers(outputs, inputs)
    return held


def prune_by(
    inner: Pruner, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace
) -> Pruned:
    """Ask the inner pruner.

    :raises ModelError: Where it returns something else than a mask and a weight that hold the budget.
    """
    return asked(f"the inner pruner {type(inner).__name__}", inner, weight, seen, budget, layer)
