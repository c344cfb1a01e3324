"""Small weights on quiet inputs go: metric |W_ij| · ‖X_j‖₂, compared within each output row.

Sun, Liu, Bair & Kolter, A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, kept_only, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Pruned
from ecoflap.core.forward.statistics import ColumnNorm


@dataclass(frozen=True)
class Wanda:
    """Keeps the largest |W_ij| · √(Σ x_j²); no weight is changed.

    :param compare: Whom a weight competes with: its output ``row``, or all of its ``layer`` (ECoFLaP's vision towers).
    """

    compare: Compare = "row"
    needs: ClassVar[tuple[type[Any], ...]] = (ColumnNorm,)

    def __call__(self, weight: Float[Tensor, "out in"], statistic: ColumnNorm, budget: Budget) -> Pruned:
        weight = weight.detach()
        metric = weight.abs().float().mul_(statistic.squared.sqrt())  # in place: large temporaries are what costs here
        mask = select(zeros_first(metric, weight), budget, self.compare)
        return Pruned(mask, kept_only(weight, mask))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"wanda": Wanda}
