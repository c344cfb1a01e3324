"""Holds a pruner to the masks of the rounds before: what they pruned does not come back."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.budget.counts import Keep
from ecoflap.core.budget.select import kept_only, select
from ecoflap.core.contracts.records import Pruned

_TOLD = 0.01
"""Of the kept weights: of so small a share nothing is said, for a row or a few columns may have one weight too few."""


def held_within(pruned: Pruned, weight: Float[Tensor, "out in"], left: Bool[Tensor, "out in"], who: str) -> Pruned:
    """Exchange every weight that a pruner kept and an earlier round had pruned for one of the rest.

    A pruner is given weights that are zero where they were pruned, and has them go first. It still keeps some where its
    own division of the budget asks for more of a row or a few columns than is left of them, or where it looks at no
    weight. The largest of those that are left come in their place, with the values that they had; the count stays.

    :param weight: What the pruner was given.
    :param left: The mask of the round before, which keeps at least as many weights.
    :param who: The pruner's name, for a note where it brought back so many that its choice is not its own any more.
    """
    back = pruned.mask & ~left
    count = int(back.count_nonzero())
    if not count:
        return pruned
    spare = left & ~pruned.mask
    metric = weight.detach().abs().float().masked_fill_(~spare, -1.0)
    instead = select(metric, Keep(count), "layer")
    mask = (pruned.mask & left) | instead
    changed = kept_only(torch.where(instead, weight.detach(), pruned.weight), mask)
    notes = pruned.notes
    if count > _TOLD * int(mask.count_nonzero()):
        notes = (
            *notes,
            f"{who} would bring {count} weights back that an earlier round has pruned, and the largest of those that "
            f"are left stay instead",
        )
    # What a pruner mended it measured under its own mask, which is not the layer's any more: no error is told of that.
    return Pruned(mask, changed, notes)
