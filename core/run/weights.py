"""Look at a model's weights as a whole: whether all are finite, and how many are not zero."""

from collections.abc import Container

from torch import nn

from ecoflap.core.bits import count_nonzero
from ecoflap.core.budget.select import is_finite
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.model.anatomy import Anatomy


def refuse_broken(model: nn.Module, source: str) -> None:
    """Refuse a model with weights that are NaN, infinite or not there, before anything is computed from them."""
    missing = [name for name, p in model.named_parameters() if p.is_meta]
    if missing:
        raise ModelError(
            f"{source}: {first_of(missing)} have no numbers: they are on the meta device as the adapter's `load` "
            f"gave the model. It should fill every parameter, and raise where a file has it not"
        )
    broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not is_finite(p.data)]
    if broken:
        raise ModelError(f"{source}: NaN or infinite weights in {first_of(broken)}. Get the model anew")


def nonzeros(anatomy: Anatomy, names: Container[str]) -> int:
    """Count the weights of these layers that are not zero."""
    weights = (layer.weight.data for _, layer in anatomy.layers() if layer.name in names)
    return sum(count_nonzero(weight) for weight in weights)


_MANY_ZEROS = 0.1
"""A share of zeros that no training leaves: in float16 one weight in a million is below the smallest number there is.

Weights that were stored in few bits have some: Gemma-3-270M in GGUF's Q4_K_M 4.5 %, and in eight bits about 1 %.
"""


def zeros_before(anatomy: Anatomy, names: Container[str]) -> str | None:
    """Say how many weights of these layers were zero before anything was pruned; None where there are few."""
    size = sum(layer.size for _, layer in anatomy.layers() if layer.name in names)
    zeros = size - nonzeros(anatomy, names)
    if zeros < max(1, _MANY_ZEROS * size):
        return None
    return (
        f"model: {zeros / size:.1%} of the weights that may be pruned, {zeros:,} of {size:,}, were zero before "
        f"anything was pruned: it was pruned before, or stored in few bits. What is called dense here is that model, "
        f"and its zeros are the first to go. If that is not meant, run with the model as it was; one in memory is "
        f"pruned in place, and has to be loaded anew"
    )
