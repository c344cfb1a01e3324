"""The metric ``magnitude_gradient`` is how far the whole model's loss would move, to first order, without a weight.

    |W_ij| · G_ij,   G_ij = 1/N Σ_n |∂L_n / ∂W_ij|

L_n is the loss on calibration batch n of N, of the model before its first block is pruned; with ``rounds`` it is taken
anew in each. With three, to s^(3/i) after the i-th (``rounds: [0.125, 0.353553, 0.5]``), and budgets by one
``threshold`` of the same, it is the baseline of global gradient pruning of Sung, Yoon & Bansal, ECoFLaP: Efficient
Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models, ICLR 2024. In Das, Ma & Shen, Beyond Size: How Gradients
Shape Pruning Decisions in Large Language Models, 2023, it is the metric without activations. Lee, Ajanthan & Torr,
SNIP, ICLR 2019, take the absolute value after the mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Metric, Statistic
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.statistics.loss_gradient import LossGradient


@dataclass(frozen=True)
class MagnitudeGradient:
    """Give |W_ij|·mean|g_ij|. It takes a backward through the whole model for each batch, before anything is pruned."""

    needs: ClassVar[tuple[type[Statistic], ...]] = (LossGradient,)

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        return seen[LossGradient].magnitude.to(weight.device) * weight.abs()


@hookimpl
def ecoflap_register_metrics() -> Mapping[str, Callable[..., Metric]]:
    return {"magnitude_gradient": MagnitudeGradient}
