"""The scorer ``first_order`` sums what the gradient of the whole model's loss says of a layer's weights.

    gradient                     S_l = mean over batches of Σ |g|
    magnitude_gradient           S_l = mean over batches of Σ |W|·|g|
    magnitude_gradient_squared   S_l = mean over batches of Σ W²·g²    (W² · diagonal empirical Fisher at batch size 1)

Each of them adds up batch by batch, so that a gradient is reduced to one number as soon as it is there, and then freed.

Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models, ICLR 2024, whose
first-order runs use ``magnitude_gradient`` on 128 samples.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Aggregate, Estimate
from ecoflap.core.errors import ModelError, refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer

Summand = Literal["gradient", "magnitude_gradient", "magnitude_gradient_squared"]
"""What is summed over a layer's weights."""


@dataclass(frozen=True)
class FirstOrder:
    """Score layers by the loss' gradient: one backward for each batch, with one layer's gradient in memory at a time.

    Activations of all blocks are kept where memory is free, and else each block but the last is run twice.

    :param measure: What is summed over a layer's weights.
    :param samples: How many calibration samples it looks at.
    """

    measure: Summand = "magnitude_gradient"
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"
    only_reads: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_below_one("samples", self.samples)

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count a forward, one for what is not kept, and a backward, which costs two, for each batch."""
        return 4 * batches

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Estimate]]:
        wanted = {layer.name for layer in layers}
        terms: dict[str, list[float]] = defaultdict(list)

        def visit(layer: Layer, gradient: Tensor) -> None:
            if layer.name in wanted:
                terms[layer.name].append(reduced(layer.weight.data, gradient, self.measure))

        replay.gradients(visit)
        for layer in layers:
            found = replay.gathered(terms[layer.name])
            if len(found) != len(replay.batches):
                raise ModelError(
                    f"{layer.name}: the loss does not depend on it in every batch, so it has no gradient. Keep its "
                    "tower whole, or score with zeroth_order."
                )
            yield layer.name, Estimate(found)


def reduced(weight: Float[Tensor, "out in"], gradient: Float[Tensor, "out in"], measure: Summand) -> float:
    """Reduce a layer's gradient on one batch to the batch's term of its score. The gradient is overwritten.

    By ``sum``, which adds pairs: a norm adds one number after the other in float32 on a CPU, and of 11008×4096 numbers
    it loses a tenth, of fewer less, so that large layers would be scored too low.
    """
    terms = gradient if measure == "gradient" else gradient.mul_(weight)  # freed after this, so it can hold the terms
    terms = terms.square_() if measure == "magnitude_gradient_squared" else terms.abs_()
    return float(terms.sum(dtype=torch.float32))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[FirstOrder]]:
    return {"first_order": FirstOrder}
