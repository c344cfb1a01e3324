"""The metric ``multiflow`` multiplies a weight's magnitude by the mean flow through its output and through its input.

    |W_ij| · o_i · n_j,   o_i = mean_j |W_ij|·‖X_j‖₂,   n_j = mean_i |W_ij|·‖X_j‖₂

Farina, Mancini, Cunegatti, Liu, Iacca & Ricci, MULTIFLOW: Shifting Towards Task-Agnostic Vision-Language Pruning, CVPR
2024, Eq. 6. Its budgets (Eq. 7) are those of one magnitude threshold for each modality, which is the allocator
``threshold`` with ``each: tower``; within a layer all weights compete. Their ‖X_j‖₂² is a mean over samples,
here it is a sum over tokens, and the order is the same. They take all statistics from the dense model; here, where
a pruner goes by it, the blocks before are pruned already.
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
from ecoflap.core.statistics.column_norm import ColumnNorm


@dataclass(frozen=True)
class Multiflow:
    """Give |W_ij| times the mean of |W|·‖X‖ over its row and that over its column."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (ColumnNorm,)

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        sizes = weight.abs().float()
        flow = sizes * seen[ColumnNorm].squared.sqrt()
        outputs, inputs = (_of_largest_one(flow.mean(axis)) for axis in (1, 0))  # a product of three may overflow
        return sizes.mul_(outputs[:, None]).mul_(inputs)


def _of_largest_one(saliency: Float[Tensor, " some"]) -> Float[Tensor, " some"]:
    """Divide by the largest, which leaves the order of all weights as it is."""
    return saliency / saliency.max().clamp_min(torch.finfo(saliency.dtype).tiny)


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"multiflow": Multiflow}
