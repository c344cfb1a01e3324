"""The pruner ``magnitude`` removes the weights nearest to zero.

    metric_ij = |W_ij|

The smallest metrics go. Han, Pool, Tran & Dally, Learning both Weights and Connections for Efficient Neural Networks,
NeurIPS 2015.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, kept_only, select
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics


@dataclass(frozen=True)
class Magnitude:
    """Keep the weights with the largest |W_ij|. It looks at no data, and changes no weight that it keeps.

    :param compare: Whom a weight competes with: all weights of its ``layer``, or those of its output ``row``.
    """

    compare: Compare = "layer"
    needs: ClassVar[tuple[type[Statistic], ...]] = ()
    changes_weights: ClassVar[bool] = False

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the metric, a copy of it that is compared, what compares them, and the weights that are kept."""
        return 4 * outputs * inputs

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        mask = select(weight.abs(), budget, self.compare)
        return Pruned(mask, kept_only(weight, mask))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"magnitude": Magnitude}
