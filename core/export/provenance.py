"""Where a pruned model comes from, kept beside the model as its masks are, for what is written about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


@dataclass(frozen=True)
class Provenance:
    """What a run knows of the model it made.

    :param source: The dense model's, as the recipe names it: a hub id, a path, ``timm:NAME``.
    :param recipe: As :meth:`Recipe.plain` writes it.
    :param towers: By tower, the share of its prunable weights that went.
    :param sparsity: The same of all of them together.
    :param measures: ``{"dense": {NAME: measure}, "pruned": …}`` as in ``report.json``; empty if nothing was evaluated.
    :param run: The run folder's name, where it is to be told.
    """

    source: str
    recipe: Mapping[str, Any]
    towers: Mapping[str, float]
    sparsity: float
    measures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    run: str = ""


_attached: WeakKeyDictionary[nn.Module, Provenance] = WeakKeyDictionary()


def attach_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Say where a model comes from, for the exporters. It is forgotten with the model, and a copy has none."""
    _attached[model] = provenance


def provenance_of(model: nn.Module) -> Provenance | None:
    """What was attached; None of a model that was pruned by hand."""
    return _attached.get(model)
