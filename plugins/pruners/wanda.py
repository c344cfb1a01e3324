"""The pruner ``wanda`` removes small weights that are multiplied by inputs of small norm.

    metric_ij = |W_ij| · ‖X_j‖₂,   ‖X_j‖₂ = √(Σ x_j²) over all tokens

The smallest metrics of each output row go. Sun, Liu, Bair & Kolter, A Simple and Effective Pruning Approach for Large
Language Models, ICLR 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, kept_only, select, zeros_first
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Pruner, Statistic
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Wanda:
    """Keep the weights with the largest |W_ij|·‖X_j‖₂. No weight that is kept changes.

    :param compare: Whom a weight competes with: those of its output ``row``, or all of its ``layer``, as ECoFLaP has it
        in the vision towers of BLIP, BLIP-2 and EVA-CLIP.
    """

    compare: Compare = "row"
    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorm,)
    changes_weights: ClassVar[bool] = False

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the metric, a copy of it that is compared, what compares them, and the weights that are kept."""
        return 4 * outputs * inputs

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        norms = seen[ColumnNorm].squared.sqrt()
        metric = weight.abs().float().mul_(norms)  # in place: large temporary tensors are what takes time here
        mask = select(zeros_first(metric, weight), budget, self.compare)
        return Pruned(mask, kept_only(weight, mask))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"wanda": Wanda}
