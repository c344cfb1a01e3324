"""What pruners have in common that mend another one's choice: they ask it, solve, and keep what is better."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.statistics.few_tokens import few_tokens
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.shared.better import better_of
from ecoflap.plugins.pruners.shared.inner import prune_by
from ecoflap.plugins.pruners.shared.normalized_gram import NormalizedGram, normalized

Mend: TypeAlias = Callable[[Float[Tensor, "out in"], Pruned, NormalizedGram], Pruned]
"""Takes the dense weight, what the inner pruner made of it, and the layer's inputs; gives what is to be better."""


def mended(
    inner: Pruner,
    weight: Float[Tensor, "out in"],
    seen: Statistics,
    budget: Budget,
    layer: LayerPlace,
    mend: Mend,
    who: str,
) -> Pruned:
    """Give what ``mend`` makes of an inner pruner's choice where that is better, and the choice itself where it is not.

    With fewer tokens than inputs nothing is mended, because what fits the calibration data would fit nothing else.

    :param who: The verb of what mends, for notes: ``refit``, ``swap``.
    """
    weight = weight.detach()
    before = prune_by(inner, weight, seen, budget, layer)
    if few_tokens(seen[Gram]):
        sentence = f"fewer tokens than inputs are too few to {who} by, so the inner result is kept"
        return before._replace(notes=(*before.notes, sentence))
    gram = normalized(seen[Gram])
    return better_of(weight, before, mend(weight, before, gram), gram, who)
