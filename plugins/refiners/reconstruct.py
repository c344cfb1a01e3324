"""The refiner ``reconstruct`` trains a block's kept weights so that it gives what the dense block gave.

    minimise Σ_x ‖f(x; W ⊙ M) − t(x)‖² / ‖t(x)‖²   over the kept weights W, the masks M fixed, by Adam

x are the block's inputs as the pruned blocks before it give them, and t(x) what the dense block returned on the inputs
of the dense model, so that a block also mends what those before it have spoilt (``target: dense``); or what it returns
on the very same inputs (``target: own``). Guo et al., EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs, 2024,
where errors are not divided by ‖t‖². What reads a hidden state normalises it first, and of many models a few tokens are
a hundred times as long as all others (Sun et al., Massive Activations in Large Language Models, 2024).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Refiner
from ecoflap.core.refining.block_view import BlockView
from ecoflap.plugins.refiners.shared.descent import Descent


@dataclass(frozen=True)
class Reconstruct(Descent):
    """Train each pruned block to give what the dense one gave. The mask stays.

    :param target: ``dense``: what the dense block gives in the dense model; ``own``: what it gives on the same inputs.
    """

    steps: int = 32
    batches: int = 2
    relative_rate: float = 4e-3
    target: Literal["dense", "own"] = "dense"

    def __call__(self, view: BlockView) -> None:
        self.train(view)


@hookimpl
def ecoflap_register_refiners() -> Mapping[str, Callable[..., Refiner]]:
    return {"reconstruct": Reconstruct}
