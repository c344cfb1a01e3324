"""The refiner ``reconstruct`` trains a block's kept weights so that it gives what the dense block gave.

    minimise Σ_x ‖f(x; W ⊙ M) − t(x)‖²   over the kept weights W, the masks M fixed, by Adam

x are the block's inputs as the pruned blocks before it give them, and t(x) what the dense block returned on the inputs
of the dense model, so that a block also mends what those before it have spoilt (``target: dense``); or what it returns
on the very same inputs (``target: own``). Guo et al., EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs, 2024.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Refiner
from ecoflap.core.refining.block_view import BlockView
from ecoflap.plugins.refiners.shared.descend import check_positive, descend


@dataclass(frozen=True)
class Reconstruct:
    """Train each pruned block to give what the dense one gave. The mask stays.

    :param steps: How many steps of Adam a block takes.
    :param batches: How many calibration batches each step looks at.
    :param learning_rate: Of the first step; it falls along a cosine.
    :param target: ``dense``: what the dense block gives in the dense model; ``own``: what it gives on the same inputs.
    """

    steps: int = 32
    batches: int = 2
    learning_rate: float = 5e-4
    target: Literal["dense", "own"] = "dense"

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, batches=self.batches, learning_rate=self.learning_rate)

    def gentler(self) -> "Reconstruct":
        """Give the same with a quarter of the rate.

        Adam's steps are of a length of their own, which is much where weights are small: of a DINOv2's and a SmolLM2's
        the same rate mends one and spoils the other.
        """
        return replace(self, learning_rate=self.learning_rate / 4)

    def __call__(self, view: BlockView) -> None:
        descend(view, self.steps, self.batches, self.learning_rate)


@hookimpl
def ecoflap_register_refiners() -> Mapping[str, Callable[..., Refiner]]:
    return {"reconstruct": Reconstruct}
