"""The metric ``wanda_plus_plus`` adds to Wanda's how far a weight moves its own block's output.

    |W_ij| · (α·G_ij + ‖X_j‖₂),   G_ij = √(1/N Σ_n (∂‖f(x_n)‖₂ / ∂W_ij)²)

f is the block and x_n a sample of N. Yang et al., Wanda++: Pruning Large Language Models via Regional Gradients,
Findings of ACL 2025: its regional gradient score. Its regional optimizer, which trains a block's weights, is not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Metric, Statistic
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.regional_gradient import RegionalGradient


@dataclass(frozen=True)
class WandaPlusPlus:
    """Give |W_ij|·(α·G_ij + ‖X_j‖₂). It takes a backward through each block for each sample.

    :param alpha: α, what a regional gradient weighs beside an input's norm, which grows with the number of tokens.
    """

    alpha: float = 100.0
    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorm, RegionalGradient)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise EcoflapError(f"alpha is {self.alpha}; it is the weight of the regional gradient, 0 or more")

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        gradients = self.alpha * seen[RegionalGradient].magnitude
        return gradients.add_(seen[ColumnNorm].squared.sqrt()).mul_(weight.abs())


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"wanda_plus_plus": WandaPlusPlus}
