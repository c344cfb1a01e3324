"""Asks a pruner for one layer: it may come from anywhere, so its answer is held to the budget before it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.bits import is_nonzero
from ecoflap.core.budget.counts import Budget, Pattern
from ecoflap.core.budget.select import is_finite
from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import LayerPlace, Mended, Pruned, Statistics
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.guards.untouched import untouched
from ecoflap.core.planning.plan import PlannedLayer
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.seeding import seed_for, seeded
from ecoflap.core.strides import layout_but_dense


def pruned_layer(
    weight: Float[Tensor, "out in"],
    planned: PlannedLayer,
    pruner: PartSpec,
    seen: Statistics,
    place: LayerPlace,
    seed: int,
) -> Pruned:
    """Ask a pruner for one layer, and hold its answer to the plan.

    :param seed: The recipe's, from which follows what it draws.
    """
    with at_layer(place.name), seeded(seed_for(seed, "prune", place.name)):
        return asked(f"the pruner {pruner.use}", pruner.built, weight, seen, planned.budget, place)


def asked(
    who: str, pruner: Pruner, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, place: LayerPlace
) -> Pruned:
    """Ask a pruner, also one that another part has, and hold its answer to the budget.

    :param who: The pruner, as messages call it.
    :raises ModelError: Where it writes into what it is given, or answers something else than the budget wants.
    """
    with blaming(who), untouched(who, weight, seen):
        pruned = pruner(weight, seen, budget, place)
        problem = what_is_wrong(pruned, weight, budget)
    if problem:
        raise ModelError(f"{who} {problem}")
    return pruned


@contextmanager
def at_layer(name: str) -> Iterator[None]:
    """Put a layer's name before what is said of a pruner inside."""
    try:
        yield
    except EcoflapError as error:
        raise type(error)(*(f"{name}: {problem}" for problem in error.problems)) from error


def what_is_wrong(pruned: Any, weight: Float[Tensor, "out in"], budget: Budget) -> str | None:
    """Say what is wrong with a pruner's answer, as the rest of a sentence; None where it is what the budget wants."""
    if not isinstance(pruned, Pruned):
        return f"returned {shown(pruned)}; a pruner returns a Pruned of a mask and a weight"
    if not isinstance(pruned.notes, tuple) or not all(isinstance(note, str) for note in pruned.notes):
        return f"noted {shown(pruned.notes)}; notes are a tuple of sentences"
    if not isinstance(pruned.mended, tuple) or not all(map(_is_told, pruned.mended)):
        return f"mended {shown(pruned.mended)}; what was mended is a tuple of Mended with finite errors"
    for what, tensor in (("a mask", pruned.mask), ("a weight", pruned.weight)):
        if (kind := of_another_kind(tensor, weight.device)) is not None:
            return f"returned {what} {kind}"
    return _what_is_wrong_with(pruned, weight, budget)


def of_another_kind(tensor: Any, device: torch.device) -> str | None:
    """Say how an answer is no dense tensor on a device, behind what names it; None of one that is."""
    if not isinstance(tensor, Tensor):
        return f"that is {shown(tensor)}; a tensor is wanted"
    if kind := layout_but_dense(tensor):
        return f"that is {kind}; a dense one is wanted, with a number for each weight"
    return f"on {tensor.device}; the layer is on {device}" if tensor.device != device else None


def _what_is_wrong_with(pruned: Pruned, weight: Float[Tensor, "out in"], budget: Budget) -> str | None:
    """Say what is wrong with tensors that can be computed with."""
    if pruned.mask.dtype != torch.bool or pruned.mask.shape != weight.shape:
        mask = f"{pruned.mask.dtype} {tuple(pruned.mask.shape)}"
        return f"returned a mask of {mask} for a weight of {tuple(weight.shape)}"
    kept, wanted = int(pruned.mask.count_nonzero()), budget.keep_of(weight.numel())
    if kept != wanted:
        return f"kept {kept} weights where the plan keeps {wanted}"
    if isinstance(budget, Pattern) and not _holds(budget, pruned.mask):
        return f"did not keep {budget.n} of every {budget.m} inputs"
    found, like = ((tuple(tensor.shape), tensor.dtype) for tensor in (pruned.weight, weight))
    if found != like:
        return f"returned a weight of {found} for one of {like}"
    if not is_finite(pruned.weight):
        return "returned NaN or infinite weights"
    return "left a weight that its mask prunes" if bool((is_nonzero(pruned.weight) > pruned.mask).any()) else None


def _is_told(mended: Any) -> bool:
    """Say whether this is a ``Mended`` that a report can hold."""
    if not isinstance(mended, Mended) or not isinstance(mended.by, str):
        return False
    return all(isinstance(error, (int, float)) and isfinite(error) for error in (mended.before, mended.after))


def _holds(pattern: Pattern, mask: Bool[Tensor, "out in"]) -> bool:
    return bool((mask.reshape(-1, pattern.m).count_nonzero(dim=1) == pattern.n).all())
