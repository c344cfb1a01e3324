"""The weights nearest to zero go: metric |W_ij|.

Han, Pool, Tran & Dally, Learning both Weights and Connections for Efficient Neural Networks (NeurIPS 2015).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, kept_only, select
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Pruned


@dataclass(frozen=True)
class Magnitude:
    """Keeps the largest |W_ij|.

    :param compare: Whom a weight competes with: all of its ``layer``, or its output ``row``.
    """

    compare: Compare = "layer"
    needs: ClassVar[tuple[type[Any], ...]] = ()

    def __call__(self, weight: Float[Tensor, "out in"], statistic: None, budget: Budget) -> Pruned:
        weight = weight.detach()
        mask = select(weight.abs(), budget, self.compare)
        return Pruned(mask, kept_only(weight, mask))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"magnitude": Magnitude}
