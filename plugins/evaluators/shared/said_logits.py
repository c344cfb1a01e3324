"""What a model says where its loss looks at it: the logits of each batch, whichever family the model is of."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Classifies, Compares, Generates, offers
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.logits import seen_by_losses
from ecoflap.plugins.evaluators.shared.checks import why_unable
from ecoflap.plugins.evaluators.shared.model_calls import batch_loss

Value = TypeVar("Value")

TARGETS = "targets"
"""What the targets of a batch are remembered as, by which it is known to be the same batch."""


@dataclass(frozen=True, eq=False)
class SaidLogits:
    """Holds the logits of one batch at the positions that its loss is about, the samples in their order.

    :param pieces: As the loss made them, all of one width.
    :param targets: What each position's logits are to predict; on the CPU.
    :param samples: How many samples the batch is of.
    """

    pieces: tuple[Float32[Tensor, "_ classes"], ...]
    targets: Int64[Tensor, " positions"]
    samples: int

    def at(self, places: Int64[Tensor, " places"]) -> Float32[Tensor, "places classes"]:
        """Give the logits at some positions, by their numbers in rising order."""
        starts = torch.tensor([0, *map(len, self.pieces)]).cumsum(0).tolist()
        inside = [places[(places >= start) & (places < end)] - start for start, end in pairwise(starts)]
        return torch.cat([piece[rows.to(piece.device)] for piece, rows in zip(self.pieces, inside, strict=True)])

    @property
    def likeliest(self) -> Int64[Tensor, " positions"]:
        """Give the class with the largest logit at each position, of several the first; on the CPU."""
        return torch.cat([piece.argmax(-1) for piece in self.pieces]).cpu()


def shared_logits(
    name: str,
    model: nn.Module,
    adapter: Adapter,
    batched: Iterable[list[Sample]],
    kept: Callable[[int, SaidLogits], Value],
    ranks: Ranks = ALONE,
) -> list[Value]:
    """Give something of the logits of each batch, which one of the processes computes.

    :param name: The evaluator's name, for messages.
    :param batched: The samples of each batch.
    :param kept: Gives what is kept of a batch, by its number and its logits.
    :raises DataError: Where there is no batch.
    :raises ModelError: Where the loss is of no logits over words or classes, or is not finite.
    """
    for problem in no_logits(name, model, adapter):
        raise ModelError(problem)
    found = ranks.deal(enumerate(batched), lambda one: kept(one[0], _said(name, one[0], model, adapter, one[1])))
    if not found:
        raise DataError(f"{name}: its data holds no sample.")
    return found


def _said(name: str, number: int, model: nn.Module, adapter: Adapter, samples: list[Sample]) -> SaidLogits:
    seen: list[tuple[Tensor, Tensor]] = []
    with seen_by_losses(lambda logits, targets: seen.append((logits, targets))):
        batch_loss(name, number, model, adapter, samples)
    if len({logits.shape[-1] for logits, _ in seen}) != 1:
        raise ModelError(
            f"{name}: the loss of {type(adapter).__name__} is no cross entropy of logits here, so there is nothing "
            f"to compare. A vision model has logits where the data are labelled."
        )
    pieces, targets = zip(*seen, strict=True)
    return SaidLogits(pieces, torch.cat(targets).cpu(), len(samples))


def no_logits(name: str, model: nn.Module, adapter: Any) -> Iterator[str]:
    """Say why a model is known to have no logits over words or classes, in a sentence.

    Of an adapter that has no ability at all it shows when its first batch is looked at.

    :param name: The evaluator's name.
    """
    head = f"{name} looks at logits over words or classes, and {type(adapter).__name__}"
    if any(why_unable(ability, adapter, model) is None for ability in (Generates, Classifies)):
        return
    if why_unable(Compares, adapter, model) is None:
        yield (
            f"{head} compares images with texts: its loss is over the pairs of a batch. How often such a model chooses "
            f"as the dense one did is told by {{use: agreement, of: {{use: zero_shot, data: …}}}}."
        )
    elif offers(adapter, Classifies):
        yield f"{head} has none here: {why_unable(Classifies, adapter, model)}"


def of_batch(what: str, number: int) -> str:
    """Give the name under which something of a batch is remembered, by the batch's number."""
    return f"{what} {number}"


def check_same_targets(name: str, number: int, said: SaidLogits, dense: Mapping[str, Tensor]) -> None:
    """Refuse a batch that is not the one that the dense model was asked about.

    :param number: The batch's number.
    :param dense: What is remembered, the batch's targets among it.
    :raises DataError: With what differs.
    """
    key = of_batch(TARGETS, number)
    if key not in dense or not torch.equal(dense[key], said.targets):
        raise DataError(f"{name}: batch {number} of its data is not the one that the dense model was asked about.")


def check_all_compared(name: str, compared: int, dense: Mapping[str, Tensor]) -> None:
    """Refuse data that have fewer batches than the dense model was asked about.

    :param compared: How many batches there were.
    :raises DataError: With both numbers.
    """
    names = set(dense)
    there = sum(of_batch(TARGETS, number) in names for number in range(len(names)))
    if compared < there:
        raise DataError(f"{name}: its data end before batch {compared}, and the dense model was asked about {there}.")


def given_dense(name: str, dense: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """Give what is remembered of the dense model; refuse a call outside a run that gave nothing.

    :raises EcoflapError: With how to call it.
    """
    if dense is None:
        raise EcoflapError(
            f"{name} compares a model with the dense one: give as dense what its remember(model, adapter, note) "
            f"returned of the dense model. A run does so by itself."
        )
    return dense
