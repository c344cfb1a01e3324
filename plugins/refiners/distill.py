"""The refiner ``distill`` trains all kept weights so that the model says what the dense one said.

    minimise mean_x KL(p_dense(· | x) ‖ p(· | x; W ⊙ M))   over the kept weights W, the masks M fixed, by Adam

x are the positions of the calibration data that the loss is about. It is knowledge distillation (Hinton, Vinyals &
Dean, Distilling the Knowledge in a Neural Network, 2015) at temperature 1, of a few dozen steps. It sees the whole
model at once, so it needs the memory of training it: 16 bytes a weight (float32 weights, gradients and two moments),
and the activations of one batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Refiner
from ecoflap.core.refining.model_view import ModelView
from ecoflap.plugins.refiners.shared.descend import check_positive, descend


@dataclass(frozen=True)
class Distill:
    """Train the pruned model towards the dense model's probabilities. Masks stay.

    :param steps: How many steps of Adam it takes.
    :param batches: How many calibration batches each step looks at.
    :param learning_rate: Of the first step; it falls along a cosine.
    """

    steps: int = 64
    batches: int = 1
    learning_rate: float = 2e-4
    scope: ClassVar[Literal["block", "model"]] = "model"

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, batches=self.batches, learning_rate=self.learning_rate)

    def gentler(self) -> "Distill":
        """Give the same with a quarter of the rate: what mends one model's weights is too much for a smaller one's."""
        return replace(self, learning_rate=self.learning_rate / 4)

    def __call__(self, view: ModelView) -> None:
        descend(view, self.steps, self.batches, self.learning_rate)


@hookimpl
def ecoflap_register_refiners() -> Mapping[str, Callable[..., Refiner]]:
    return {"distill": Distill}
