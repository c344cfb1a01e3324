"""Compute a model's own loss by its own forward, which is what an adapter's loss is held against.

The adapter only says what the model's forward is called with. That computes logits and loss itself, so an adapter
cannot vouch for a formula, a head or a scale of its own.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_answers import held_loss
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import map_tensors
from ecoflap.core.forward.placement import device_of

OwnLoss = Callable[[nn.Module, Batch], Float[Tensor, ""]]
"""What a loss is held against: given a model and a batch, by its own forward and logits."""


def with_own_loss(adapter: Adapter, own_loss: OwnLoss) -> Adapter:
    """Give a copy of an adapter whose loss is the model's own, for a replay."""

    def loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return held_loss("what the adapter's loss is held against", own_loss(model, batch))

    twin = copy(adapter)
    object.__setattr__(twin, "loss", loss)  # an adapter may be a frozen dataclass
    return twin


def own_loss_of(adapter: Adapter, model: nn.Module, batch: Batch) -> OwnLoss | None:
    """Give what computes a model's own loss of batches like this one; None where the adapter says that it makes none.

    :raises ModelError: Where the adapter's ``own_inputs`` fails.
    """
    options, name = options_of(AdapterOptions, adapter), f"the adapter {type(adapter).__name__}"
    with blaming(f"{name}, asked for what the model computes its own loss of,"):
        if options.own_inputs(model, batch) is None:
            return None

    def own_loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        with blaming(f"{type(model).__name__}.forward, called with what own_inputs of {name} gives,"):
            return _loss_in(model, model(**_placed(options.own_inputs(model, batch) or {}, model)))

    return own_loss


def _placed(arguments: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    device = device_of(model)
    return {name: map_tensors(value, lambda tensor: tensor.to(device)) for name, value in arguments.items()}


def _loss_in(model: nn.Module, output: Any) -> Float[Tensor, ""]:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ModelError(
            f"{type(model).__name__}.forward gave no loss for the adapter's own_inputs: they should hold what makes "
            f"it compute one, such as labels"
        )
    return loss
