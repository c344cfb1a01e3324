"""The metric ``wanda`` is a weight's size times a power of its input's norm: |W_ij|·‖X_j‖₂^α.

Sun, Liu, Bair & Kolter, A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, where α is 1.
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


@dataclass(frozen=True)
class Wanda:
    """Give |W_ij|·‖X_j‖₂^α.

    :param alpha: α, the power of the norm; 0 is the size of the weight alone, and 0.5 what ``ria`` has.
    """

    alpha: float = 1.0
    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorm,)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise EcoflapError(f"alpha is {self.alpha}; it is the power of an input's norm, 0 or more")

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        norms = seen[ColumnNorm].squared.sqrt()
        return weight.abs().float() * norms**self.alpha


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"wanda": Wanda}
