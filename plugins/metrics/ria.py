"""The metric ``ria`` is a weight's share of its row and of its column, times a power of its input's norm.

    (|W_ij| / Σ_k |W_ik| + |W_ij| / Σ_k |W_kj|) · ‖X_j‖₂^α

Zhang, Bai, Lin, Zhao, Hou & Cannistraci, Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models, ICLR 2024: relative importance and activations. Their code has the weights of a whole layer
compete, unless it is told to compare rows; ``by_metric`` compares rows unless it has ``compare: layer``. Their
permutation of channels for patterns is not here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Metric, Statistic
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Ria:
    """Give a weight's relative importance times ‖X_j‖₂^α, so that no input loses all that reads it.

    :param alpha: α, the power of the norm.
    """

    alpha: float = 0.5
    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorm,)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise EcoflapError(f"alpha is {self.alpha}; it is the power of an input's norm, 0 or more")

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        sizes = weight.abs().float()
        least = torch.finfo(torch.float32).tiny  # a row or column of zeros has a share of zero, not of 0 / 0
        shares = sizes / sizes.sum(1, keepdim=True).clamp_min(least) + sizes / sizes.sum(0).clamp_min(least)
        return shares.mul_(seen[ColumnNorm].squared.sqrt() ** self.alpha)

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count the weights' sizes, and the shares of a row while those of a column are added."""
        return 2 * outputs * inputs


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"ria": Ria}
