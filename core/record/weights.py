"""Look at a model's weights as a whole: whether all are finite, and how many are not zero."""

from collections.abc import Container

from torch import nn

from ecoflap.core.budget.select import is_finite, is_nonzero
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.model.anatomy import Anatomy


def refuse_broken(model: nn.Module, source: str) -> None:
    """Refuse a model with NaN or infinite weights, naming them, before anything is computed from them."""
    broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not is_finite(p.data)]
    if broken:
        raise ModelError(f"{source}: NaN or infinite weights in {first_of(broken, 3)}. Get the model anew")


def nonzeros(anatomy: Anatomy, names: Container[str]) -> int:
    """Count the weights of these layers that are not zero."""
    weights = (layer.weight.data for _, layer in anatomy.layers() if layer.name in names)
    return sum(int(is_nonzero(weight).count_nonzero()) for weight in weights)
