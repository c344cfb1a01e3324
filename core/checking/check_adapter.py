"""Whether an adapter says the truth about its model: what a new one is held to before anything is pruned with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.checking.against_model import TOLERANCE, UNCOMPARED, hold_against_model
from ecoflap.core.checking.own_loss import OwnLoss
from ecoflap.core.checking.saved import try_to_save
from ecoflap.core.contracts.adapter_answers import loss_of, max_length_of
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.placement import device_of
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.model.source import open_source
from ecoflap.core.statistics.column_norm import ColumnNorm

LARGEST_SAVED = 1e9
"""Bytes of the largest model that is saved for a trial: it is written in full, where temporary files go."""


@dataclass(frozen=True, eq=False)
class CheckedAnatomy(Anatomy):
    """Holds the anatomy of a model whose adapter was found right, and what its loss was held against.

    :param loss: The adapter's, of the samples in one batch.
    :param own_loss: The model's own of the same batch; None where there was nothing to compare with.
    :param notes: A sentence for everything that was not checked, and for names that the model has not.
    """

    loss: float
    own_loss: float | None
    notes: tuple[str, ...]


def check_adapter(
    adapter: Adapter, model: nn.Module, samples: Sequence[Sample], own_loss: OwnLoss | None = None
) -> CheckedAnatomy:
    """Compare what an adapter declares with what its model does.

    The loss is the model's own. No tower, block or matrix that runs is missing, and what is listed is a matrix; each is
    fed tokens of the tower it reads, and no padding; the loss from every block on is the whole forward's; every matrix
    has a gradient; and what the adapter saves is found again. Small models and a few samples of unequal length are
    enough.

    :param own_loss: Computes of ``(model, batch)`` what the adapter's loss is held against, by the model's own forward
        and logits. By default it is what the model's forward makes of the adapter's ``own_inputs``.
    :return: The anatomy, with all the adapter names, and both losses. Where there is nothing to hold the loss against,
        samples do not run alone, or the model is too large to be saved for a trial, its ``notes`` say so.
    :raises ModelError: With everything that is wrong.
    """
    with blaming(f"the adapter {type(adapter).__name__}, taking the model apart,"):
        anatomy = Anatomy.of(adapter.towers(model), adapter.layers, include=None)
        anatomy.refuse_unnamed(model)
        max_length_of(adapter, model)
        batch = adapter.collate(model, samples)
        turned = adapter.collate(model, samples[::-1])
    replay = Replay(model, adapter, [batch], anatomy=anatomy)
    problems: list[str] = []
    notes: list[str] = []
    try:
        loss, own = _compared(replay, own_loss, problems, notes)
        problems += _walked(Replay(model, adapter, [batch, turned], anatomy=anatomy))
        problems += _padding(replay, samples, notes)
        problems += _without_gradient(replay)
        problems += _saved(replay, notes)
    except EcoflapError as error:
        problems += error.problems
    if problems:
        raise ModelError(*problems)
    if own is None:
        notes.append(UNCOMPARED)
    return CheckedAnatomy(anatomy.towers, anatomy.layers_of, loss, own, tuple(notes))


def _compared(
    replay: Replay, own_loss: OwnLoss | None, problems: list[str], notes: list[str]
) -> tuple[float, float | None]:
    """Give the adapter's loss and the model's own; what is wrong with it, and what ran and is no layer, is added."""
    found = hold_against_model(replay, own_loss)
    problems += [one.sentence for one in found.coverage.forgotten()]
    notes += found.coverage.nowhere()
    if found.wrong_loss is not None:
        problems.append(found.wrong_loss)
    return found.loss, found.own


def _walked(replay: Replay) -> Iterator[str]:
    """Walk the blocks and say from which of them on the loss is off, of two batches in turn.

    Of one batch alone it would be right, too, where a block finds in the model what another has left there.
    """
    with torch.no_grad(), without_fast_path():
        plain = [float(loss_of(replay.adapter, replay.model, batch)) for batch in replay.batches]
    for index, block in enumerate(replay.blocks):
        losses = zip(replay.loss(index).tolist(), plain, strict=True)
        off = next((both for both in losses if _differs(*both, replay.model)), None)
        if off is not None:
            yield (
                f"the loss from {block.name} on is {off[0]}, and that of the plain forward {off[1]}. What a block "
                f"gives is handed to the next, and kept beyond it where it is `tapped`; what it leaves elsewhere is "
                f"lost"
            )
        replay.advance(index)


def _differs(loss: float, plain: float, model: nn.Module) -> bool:
    """Say whether two computations of one loss differ. A CPU adds up in one order, and another device may in any."""
    if device_of(model).type == "cpu":
        return loss != plain
    types = [one.dtype for one in model.parameters() if one.is_floating_point()]
    step = max([TOLERANCE, *(torch.finfo(dtype).eps for dtype in types)])
    return not abs(loss - plain) <= step * max(abs(plain), step)  # also where one is no number


def _padding(replay: Replay, samples: Sequence[Sample], notes: list[str]) -> Iterator[str]:
    """Say where padding was seen: samples alone have none, so their statistics must add up to those of the batch.

    Where samples do not run alone, as the last block's in a loss over pairs, which block that is is added to the notes.

    In float32: a product in bfloat16 is rounded another way for another number of tokens, on a CPU without such
    arithmetic by more than padding might change.
    """
    batches: list[Batch] = [replay.adapter.collate(replay.model, [sample]) for sample in samples]
    together, alone = _in_float32(replay, replay.batches), _in_float32(replay, batches)
    for index in range(len(alone.blocks)):
        try:
            ours, theirs = (_norms(walk, index) for walk in (together, alone))
        except DataError as error:
            at = alone.blocks[index].name
            notes.append(f"from {at} on nothing says whether padding is seen, for a sample alone is refused: {error}")
            return
        for name, squared in theirs.items():
            if not torch.allclose(squared, ours[name], rtol=1e-3):
                yield f"{name}: its inputs are others in a padded batch than alone; tokens() or a mask is wrong"
        together.advance(index)
        alone.advance(index)


def _in_float32(replay: Replay, batches: Sequence[Batch]) -> Replay:
    return Replay(replay.model, replay.adapter, batches, anatomy=replay.anatomy, dtype=torch.float32)


def _norms(replay: Replay, index: int) -> dict[str, Float[Tensor, "in"]]:
    return {name: seen[ColumnNorm].squared for name, seen in replay.run(index, (ColumnNorm,)).items()}


def _without_gradient(replay: Replay) -> Iterator[str]:
    seen: set[str] = set()
    replay.gradients(lambda layer, gradient: seen.add(layer.name))
    for _, layer in replay.anatomy.layers():
        if layer.name not in seen:
            yield f"{layer.name}: the loss does not depend on it"


def _saved(replay: Replay, notes: list[str]) -> Iterator[str]:
    """Save the model into a folder that is deleted again, and say what of its layers is not found there."""
    adapter, model = replay.adapter, replay.model
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > LARGEST_SAVED:
        notes.append(
            f"save was not tried, for the weights have {size / 1e9:,.1f} GB, and up to {LARGEST_SAVED / 1e9:g} GB are "
            f"written for a trial: check it with a small model of the family"
        )
        return

    def load() -> nn.Module:
        with blaming(f"the adapter {type(adapter).__name__}, loading what it has saved,"):
            loaded = adapter.load(open_source(str(inside), inside), None, "cpu")
        if not isinstance(loaded, nn.Module):
            raise ModelError(f"the adapter {type(adapter).__name__} loads no model from what it has saved: {loaded!r}")
        return loaded

    layers = [layer.name for _, layer in replay.anatomy.layers()]
    with TemporaryDirectory() as folder:
        inside = Path(folder)
        try:
            try_to_save(adapter, model, layers, inside, load)
        except EcoflapError as error:  # nobody finds the folder any more
            yield from (problem.replace(folder, "what save wrote") for problem in error.problems)
