"""Ask of a pruned model what exporters need before they write it: masks, and weights that keep to them."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.errors import EcoflapError, ModelError, first_of
from ecoflap.core.packed.bits import nonzeros_pruned
from ecoflap.core.pruning.masks import bits_in, shape_in

_NAMED = 5
"""How many layers a message names."""


def require_masks(pruned: PrunedModel) -> None:
    """Refuse a model without masks."""
    if not pruned.masks:
        raise EcoflapError("nothing in this model has been pruned, so there are no masks to export. Prune it first.")


def width_problems(weights: Mapping[str, Tensor], exporter: str) -> Iterator[str]:
    """Say which weights are wider than an exporter writes.

    :param exporter: The name of the exporter, for the message.
    """
    if wide := [name for name, weight in weights.items() if weight.dtype == torch.float64]:
        yield (
            f"the exporter {exporter} writes no weights in float64, as {some(wide)}. Set model.dtype: float32, or "
            f"convert a model in memory: model.float()."
        )


def require_zeros(pruned: PrunedModel, exporter: str) -> None:
    """Refuse a model in which a weight that its mask prunes is not zero.

    :param exporter: The name of the exporter, for the message.
    """
    masks = pruned.parameter_masks
    weights = {name: pruned.model.get_parameter(name) for name in masks}
    if odd := [name for name, weight in weights.items() if shape_in(masks, name) != tuple(weight.shape)]:
        raise ModelError(f"{exporter}: {some(odd)}: the mask has another shape than the weight.")
    moved = [name for name, weight in weights.items() if nonzeros_pruned(weight, bits_in(masks, name).numpy())]
    if moved:
        raise ModelError(
            f"{exporter}: {some(moved)}: weights that were pruned are not zero any more. Prune the model again."
        )


def names_once(pruned: PrunedModel) -> list[str]:
    """Give the names of the pruned parameters, only the first of those that are tied."""
    first: dict[int, str] = {}
    for name in pruned.parameter_masks:
        first.setdefault(id(pruned.model.get_parameter(name)), name)
    return list(first.values())


def some(names: list[str]) -> str:
    """Name some layers for a message."""
    return first_of(names, _NAMED)
