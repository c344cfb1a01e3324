"""Hold an adapter against its model on one batch: its loss against the model's own, its layers against what runs."""

from dataclasses import dataclass

import torch

from ecoflap.core.checking.coverage import Coverage
from ecoflap.core.checking.own_loss import OwnLoss, own_loss_of, with_own_loss
from ecoflap.core.checking.uses import Uses, watching_uses
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy

TOLERANCE = 1e-4
"""How far two computations of one loss may be apart, as a share of it. Both are in float32, in which another order of a
sum over some thousand tokens moves it by a hundredth of this."""
UNCOMPARED = (
    "the adapter's loss was held against nothing: its own_inputs gives nothing of which the model's forward computes a "
    "loss, and no own_loss was given. Whether it is the loss of this model is not known"
)


@dataclass(frozen=True)
class AgainstModel:
    """What was found when an adapter was held against its model on one batch.

    :param loss: The adapter's.
    :param own: The model's own; None where there is nothing that computes it.
    :param coverage: The adapter's layers beside all that ran.
    """

    adapter: str
    model: str
    loss: float
    own: float | None
    coverage: Coverage

    @property
    def wrong_loss(self) -> str | None:
        """Say that the loss is not the model's own; None where it is, or where that is not known."""
        own = self.own
        if own is None or abs(self.loss - own) <= TOLERANCE * max(abs(own), TOLERANCE):
            return None
        return (
            f"the loss of the adapter {self.adapter} is {self.loss:.6g} on a batch, and the model's own is {own:.6g}, "
            f"as {self.model}.forward computes it: it is the loss of another model, such as one that does not scale or "
            f"cap its logits. The model itself has to be asked for them; or its own loss is of other labels"
        )


def hold_against_model(replay: Replay, own_loss: OwnLoss | None = None) -> AgainstModel:
    """Run the adapter's loss, then the model's own forward, each once on a replay's first batch.

    :param replay: Of the whole model; both losses are taken in the float32 at least, whatever precision it has.
    :param own_loss: Computes the model's own; by default its forward does, of the adapter's ``own_inputs``.
    """
    adapter, model, batch = replay.adapter, replay.model, replay.batches[0]
    own_loss = own_loss or own_loss_of(adapter, model, batch)
    uses = Uses()
    loss = _loss(replay, adapter, uses)
    own = None if own_loss is None else _loss(replay, with_own_loss(adapter, own_loss), uses)
    name = type(adapter).__name__
    with blaming(f"the adapter {name}, taking the model apart,"):
        left_out = options_of(AdapterOptions, adapter).left_out(model)
        whole = Anatomy.of(adapter.towers(model), adapter.layers, include=None)
    return AgainstModel(name, type(model).__name__, loss, own, Coverage(model, whole, left_out, uses))


def _loss(replay: Replay, by: Adapter, uses: Uses) -> float:
    wide = Replay(
        replay.model, by, replay.batches[:1], anatomy=replay.anatomy, seed=replay.seed, dtype=torch.float32,
        device=replay.placement.device,
    )  # fmt: skip
    with watching_uses(replay.model, uses):
        return float(wide.loss(0))
