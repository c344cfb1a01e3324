"""First-order scores: the gradient of the whole model's loss, layer by layer and never kept.

    gradient                     S_l = mean over batches of Σ |g|
    magnitude_gradient           S_l = mean over batches of Σ |W|·|g|
    magnitude_gradient_squared   S_l = mean over batches of Σ W²·g²      (diagonal empirical Fisher at batch size 1)

Each is linear in the batch's term, so a gradient is reduced to one number as soon as it is there and then freed.

Sung, Yoon, Bansal: ECoFLaP, ICLR 2024; their first-order runs use ``magnitude_gradient`` on 128 samples.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap import hookimpl
from ecoflap.core.contracts.records import Aggregate, Estimate
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer

Measure = Literal["gradient", "magnitude_gradient", "magnitude_gradient_squared"]


@dataclass(frozen=True)
class FirstOrder:
    """Gradient-based sensitivity, by one backward a batch with one layer's gradient in memory.

    :param measure: What is summed over a layer's weights.
    :param samples: Calibration samples it looks at.
    """

    measure: Measure = "magnitude_gradient"
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """A forward, a recomputed one, and a backward, which costs two."""
        return 4 * batches

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Estimate]]:
        wanted = {layer.name for layer in layers}
        terms: dict[str, list[float]] = defaultdict(list)

        def visit(layer: Layer, gradient: Tensor) -> None:
            if layer.name in wanted:
                terms[layer.name].append(reduced(layer.weight.data, gradient, self.measure))

        replay.gradients(visit)
        for layer in layers:
            if len(terms[layer.name]) != len(replay.batches):
                raise ModelError(f"{layer.name}: the loss does not depend on it in every batch, so it has no gradient")
            yield layer.name, Estimate(terms[layer.name])


def reduced(weight: Float[Tensor, "out in"], gradient: Float[Tensor, "out in"], measure: Measure) -> float:
    """A layer's term of one batch."""
    if measure == "gradient":
        return float(torch.linalg.vector_norm(gradient, ord=1))
    product = gradient.mul_(weight)  # the gradient is freed after this, so it serves as the buffer
    if measure == "magnitude_gradient":
        return float(torch.linalg.vector_norm(product, ord=1))
    return float(torch.linalg.vector_norm(product)) ** 2


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[FirstOrder]]:
    return {"first_order": FirstOrder}
