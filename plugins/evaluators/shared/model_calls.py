"""A model is asked for texts, embeddings and losses in batches, and without a graph."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.adapter_answers import loss_of
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.forward.nested import batch_on
from ecoflap.core.forward.placement import device_of
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import batches

Value = TypeVar("Value")


class BatchLoss(NamedTuple):
    """Holds the adapter's loss of one batch.

    :param samples: What the batch was made of.
    :param batch: Its tensors, where the model is.
    """

    samples: list[Sample]
    batch: Batch
    loss: float


def shared_losses(
    name: str,
    model: nn.Module,
    adapter: Adapter,
    batched: Iterable[list[Sample]],
    counted: Callable[[BatchLoss], int],
    ranks: Ranks,
) -> list[tuple[float, int]]:
    """Give the adapter's loss of each batch with how many things it is over, each computed by one of the processes.

    :param name: The evaluator's name, for messages.
    :param batched: The samples of each batch.
    :param counted: Counts the things that a loss is over.
    :raises ModelError: Where a loss is not finite.
    """

    def compute(numbered: tuple[int, list[Sample]]) -> tuple[float, int]:
        one = batch_loss(name, numbered[0], model, adapter, numbered[1])
        return one.loss, counted(one)

    return ranks.deal(enumerate(batched), compute)


def predicted(model: nn.Module, adapter: Adapter, window: BatchLoss) -> Bool[Tensor, " tokens"]:
    """Say which tokens of a window, which is the batch's one sample, the loss is the mean over.

    The adapter knows it, of a decoder's text or of words that are masked. By default it is all tokens but the first.
    """
    told, tokens = options_of(AdapterOptions, adapter).predicted(model, window.batch), window.samples[0].tokens
    assert tokens is not None  # who calls has seen to it
    return torch.arange(len(tokens)) > 0 if told is None else told[0]


def batch_loss(name: str, number: int, model: nn.Module, adapter: Adapter, samples: list[Sample]) -> BatchLoss:
    """Give the adapter's loss of one batch.

    :param name: The evaluator's name, for messages.
    :param number: The batch's number, for messages.
    :raises ModelError: Where it is not finite.
    """
    batch = batch_on(adapter.collate(model, samples), str(device_of(model)))
    with torch.no_grad():
        loss = float(loss_of(adapter, model, batch))
    if not math.isfinite(loss):
        raise ModelError(f"{name}: the loss of batch {number} is {loss}; the model is broken.")
    return BatchLoss(samples, batch, loss)


def texts_said(
    model: nn.Module, adapter: Any, samples: Iterable[Sample], generation: Generation, size: int
) -> Iterator[tuple[Sample, Said]]:
    """Yield each sample with the text that the model makes of it.

    :param adapter: One that ``Generates``.
    :param samples: They are read as they are needed.
    :param size: How many samples are a batch.
    """
    with torch.no_grad():
        for batch in batches(samples, size):
            yield from zip(batch, adapter.generate(model, batch, generation), strict=True)


def shared_texts(
    model: nn.Module,
    adapter: Any,
    samples: Iterable[Sample],
    generation: Generation,
    size: int,
    kept: Callable[[int, Sample, Said], Value],
    ranks: Ranks,
) -> list[Value]:
    """Give something of each sample and of the text that the model makes of it, each batch made by one process.

    :param adapter: One that ``Generates``.
    :param samples: They are read as they are needed.
    :param size: How many samples are a batch.
    :param kept: Gives what is kept of a sample's number, the sample and its text.
    """

    def compute(numbered: tuple[int, list[Sample]]) -> list[Value]:
        number, batch = numbered
        pairs = texts_said(model, adapter, batch, generation, size)
        return [kept(size * number + place, *pair) for place, pair in enumerate(pairs)]

    return [one for found in ranks.deal(enumerate(batches(samples, size)), compute) for one in found]


def embedded_images(
    name: str, model: nn.Module, adapter: Any, samples: Iterable[Sample], size: int, ranks: Ranks = ALONE
) -> Float[Tensor, "images ..."]:
    """Embed the images of samples, which are read as they are needed.

    :param name: The evaluator's name, for messages.
    :param adapter: One that ``Compares``.
    :param size: How many images are a batch.
    :param ranks: The processes that embed a share of the batches each.
    :raises DataError: Where there is no sample.
    :raises ModelError: Where an embedding is not finite.
    """
    with torch.no_grad():
        found = ranks.deal(batches(samples, size), lambda batch: adapter.embed_images(model, batch))
    if not found:
        raise DataError(f"{name}: its data holds no image.")
    return _finite(name, torch.cat(found))


def embedded_texts(
    name: str, model: nn.Module, adapter: Any, texts: Sequence[str], size: int, ranks: Ranks = ALONE
) -> Float[Tensor, "texts features"]:
    """Embed texts, and give the embeddings in the texts' order.

    Texts of like length are embedded together, so that little is padded.

    :param name: The evaluator's name, for messages.
    :param adapter: One that ``Compares``.
    :param size: How many texts are a batch.
    :param ranks: The processes that embed a share of the batches each.
    :raises ModelError: Where an embedding is not finite.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    with torch.no_grad():
        found = ranks.deal(batches(order, size), lambda batch: adapter.embed_texts(model, [texts[n] for n in batch]))
    place = torch.tensor(order).argsort()
    made = torch.cat(found)
    return _finite(name, made[place.to(made.device)])


def _finite(name: str, made: Tensor) -> Tensor:
    if not made.isfinite().all():
        raise ModelError(f"{name}: the model's embeddings are not finite; the model is broken.")
    return made
