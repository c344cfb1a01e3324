"""The refiner ``distill`` trains all kept weights so that the model says what the dense one said.

    minimise mean_x KL(p_dense(· | x) ‖ p(· | x; W ⊙ M))   over the kept weights W, the masks M fixed, by Adam

x are the positions of the calibration data that the loss is about. It is knowledge distillation (Hinton, Vinyals &
Dean, Distilling the Knowledge in a Neural Network, 2015) at temperature 1, of a few dozen steps. It sees the whole
model at once, so it needs the memory of training it: 17 bytes a weight beside the model (in float32 the weights, or of
a float32 model what they were before, gradients and two moments; and the mask), and the activations of one batch. Of a
model that stays in its files all of that lies in files too, but for the activations of one block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Refiner
from ecoflap.core.refining.model_view import ModelView
from ecoflap.plugins.refiners.shared.descent import Descent


@dataclass(frozen=True)
class Distill(Descent):
    """Train the pruned model towards the dense model's probabilities. Masks stay."""

    steps: int = 64
    batches: int = 1
    relative_rate: float = 1e-3
    scope: ClassVar[Literal["block", "model"]] = "model"

    def __call__(self, view: ModelView) -> None:
        self.train(view)


@hookimpl
def ecoflap_register_refiners() -> Mapping[str, Callable[..., Refiner]]:
    return {"distill": Distill}
