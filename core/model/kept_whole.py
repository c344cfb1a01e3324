"""Count what of a model is kept whole, and why: by the kind of what it is, and by the towers that nobody prunes."""

from collections.abc import Container, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import nn

from ecoflap.core.model.anatomy import Anatomy, Tower
from ecoflap.core.model.kept_parts import ROUTER, is_router, kept_outside
from ecoflap.core.model.never_pruned import NeverPruned, ParameterKind, never_pruned

SMALL = "norms, biases and scales"
NO_LAYERS = "experts that the adapter does not list"


class KeptWhole(NamedTuple):
    """Counts what is kept for one reason.

    :param example: The name of the first of it.
    """

    reason: str
    parameters: int
    example: str


def kept_whole(
    model: nn.Module, anatomy: Anatomy, towers: Sequence[Tower], pruned: Container[str], left_out: Mapping[str, str]
) -> list[KeptWhole]:
    """Sum up by reason all that no budget is about, the largest first.

    :param towers: All that the adapter names, also those that the anatomy leaves out.
    :param pruned: Names of the layers that budgets are about.
    :param left_out: By parameter or block, why the adapter leaves it out on purpose.
    """
    found: dict[str, KeptWhole] = {}
    never = never_pruned(model, anatomy, towers, left_out)
    kept = ((_reason(model, anatomy, one), prod(one.shape), one.name) for one in never)
    for reason, size, name in (*kept, *_layers(anatomy, pruned)):
        before = found.get(reason, KeptWhole(reason, 0, name))
        found[reason] = before._replace(parameters=before.parameters + size)
    return sorted(found.values(), key=lambda one: -one.parameters)


def _layers(anatomy: Anatomy, pruned: Container[str]) -> Iterator[tuple[str, int, str]]:
    """Yield the layers of towers that are kept."""
    for block, layer in anatomy.layers():
        if layer.name not in pruned:
            yield f"the tower {block.tower}, which is kept", layer.size, layer.name


def _reason(model: nn.Module, anatomy: Anatomy, one: NeverPruned) -> str:
    """Say why a parameter is kept that is no layer."""
    if one.kind is ParameterKind.SMALL:
        return SMALL
    if one.kind is ParameterKind.OFFERED:
        return "outside the blocks; include: takes it in"
    if one.kind in (ParameterKind.LEFT_OUT, ParameterKind.EMBEDDING, ParameterKind.CONVOLUTION):
        return one.reason
    if is_router(model, one.name):
        return ROUTER
    if any(one.name.startswith(f"{block.name}.") for block in anatomy.blocks):
        return NO_LAYERS if len(one.shape) > 2 else one.reason
    return kept_outside(model, one.name) or one.reason
