"""Note on a model what it was read with, where its library forgets it and needs it to read the model again.

It stands in the attribute ``ecoflap_description`` as plain values: the configuration of a model of open_clip, arguments
of ``timm.create_model``, a model's name in LAVIS. An adapter writes it down when it loads a model and reads it when it
saves that model, so it need not remember which model it has loaded. No state dict holds it; a copy of the model does.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

ATTRIBUTE = "ecoflap_description"


def describe(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write down what a model was read with."""
    setattr(model, ATTRIBUTE, deepcopy(dict(description)))


def description_of(model: nn.Module) -> dict[str, Any]:
    """Give what a model was read with, as a copy; empty for one that no adapter has read."""
    return deepcopy(dict(getattr(model, ATTRIBUTE, {})))
