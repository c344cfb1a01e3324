"""The metric ``optimal_brain_surgeon`` is by how much a layer's squared output error rises where a weight alone goes.

    (W_ij / U_jj)²,   H = Σ x xᵀ + λ·mean(diag)·I,   H⁻¹ = UᵀU with U upper triangular

The weights of its row in the columns after it make up for it as well as they can, and those before it stay. SparseGPT
chooses by this criterion; here it is of the original weights, without SparseGPT's updates. Hassibi & Stork, Second
Order Derivatives for Network Pruning: Optimal Brain Surgeon, NeurIPS 1992, have W²/[H⁻¹]_jj, where all others of the
row make up for it. U is of Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-
Shot, ICML 2023.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Metric, Statistic
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.inverse_factor import pivots_of, refuse_damping


@dataclass(frozen=True)
class OptimalBrainSurgeon:
    """Give (W_ij / U_jj)², and 0 for the weights of an input that was always zero.

    :param damping: λ, the share of the mean diagonal that is added to the diagonal. Where the factorisation fails, λ is
        raised tenfold until it succeeds.
    """

    damping: float = 0.01
    needs: ClassVar[tuple[type[Statistic], ...]] = (Gram,)

    def __post_init__(self) -> None:
        refuse_damping(self.damping)

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        pivots = pivots_of(seen[Gram], self.damping)
        return (weight.float() * pivots.values.masked_fill(pivots.dead, 0)).square()

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count what the matrix is factorised in, and the weights in float32."""
        return 2 * inputs**2 + outputs * inputs


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"optimal_brain_surgeon": OptimalBrainSurgeon}
