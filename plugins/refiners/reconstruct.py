"""The refiner ``reconstruct`` trains a block's kept weights so that it gives what the dense block gave.

    minimise mean_x ‖f(x; W ⊙ M) − t(x)‖² / max(‖t(x)‖², 1e-4·median_x ‖t(x)‖²)   over the kept weights W, by Adam

The masks M are fixed. A mean is taken over a batch's real tokens x, and so is the median.

x are the block's inputs as the pruned blocks before it give them, and t(x) what the dense block returned on the inputs
of the dense model, so that a block also mends what those before it have spoilt (``target: dense``); or what it returns
on the very same inputs (``target: own``). Guo et al., EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs, 2024,
whose code has ``own``, and does not divide errors by ‖t‖². What reads a hidden state normalises it first, and of many
models a few tokens are a hundred times as long as all others (Sun et al., Massive Activations in Large Language Models,
2024). Makni et al., 3BASiL, NeurIPS 2025, match a transformer's outputs behind any one-shot method, by ``own`` in their
code, with a low-rank part beside what is kept.

With ``each: subblock`` f is one sub-block of a block at a time, in the order they run: its attention, its MLP. Wagner
et al., A Free Lunch in LLM Compression: Revisiting Retraining after Pruning, 2025, find that as good as whole blocks.
x is what the sub-blocks before it give once they are trained, and t what it gave in the dense model, as in their code
with ``propagate_sparse_activations_reconstruct`` and ``use_dense_targets``; without the first it has x of the dense
model. Theirs are parts of a family's forward that are written out, from before the norm until the residual is added;
ours are modules that the model calls, which in T5 have norm and residual inside and in LLaMA have not, so that there
``target: dense`` asks a sub-block to mend what spoils its inputs, and not the residual beside it. They train norms and
biases too, by a plain mean square for an epoch or more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Refiner
from ecoflap.core.contracts.records import Target
from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.subblock_view import SubBlockView
from ecoflap.plugins.refiners.shared.descent import Descent


@dataclass(frozen=True)
class Reconstruct(Descent):
    """Train each pruned block, or each sub-block of it, to give what the dense one gave. The mask stays.

    :param target: ``dense``: what the dense block gives in the dense model; ``own``: what it gives on the same inputs.
    :param each: What is trained at a time: a ``block``, or a ``subblock``, such as its attention or its MLP.
    """

    steps: int = 32
    batches: int = 2
    relative_rate: float = 4e-3
    target: Target = "dense"
    each: Literal["block", "subblock"] = "block"

    def __call__(self, view: BlockView | SubBlockView) -> None:
        self.train(view)


@hookimpl
def ecoflap_register_refiners() -> Mapping[str, Callable[..., Refiner]]:
    return {"reconstruct": Reconstruct}
