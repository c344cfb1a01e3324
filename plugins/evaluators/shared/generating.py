"""What evaluators share that have a model make texts: batches, what samples must have, and means with their errors."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from typing import Any

import torch
from torch import nn

from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.comparing import batches, check_ability

NAMED = 5  # of the samples that lack something


def said_of(
    name: str,
    model: nn.Module,
    adapter: Any,
    samples: Iterable[Sample],
    generation: Generation,
    size: int,
    asked: Callable[[Sample], Sample],
) -> Iterator[tuple[Sample, Said]]:
    """Each sample with what the model says of it.

    :param name: The evaluator's.
    :param size: How many samples are a batch; no more than those are held.
    :param asked: The sample as the model is shown it.
    """
    check_ability(name, Generates, adapter, model)
    with torch.no_grad():
        for batch in batches(samples, size):
            found = adapter.generate(model, [asked(sample) for sample in batch], generation)
            yield from zip(batch, found, strict=True)


def complete(
    name: str, samples: Iterable[Sample], size: int, lacks: Callable[[Sample], str | None]
) -> Iterator[Sample]:
    """The same samples, each batch of them looked through before the first of it is given.

    :param lacks: What a sample is without, such as ``answers``; None where it has all.
    :raises DataError: Where one lacks something, of all that do; or where there is none.
    """
    number, rest = 0, iter(samples)
    for batch in batches(rest, size):
        if any(map(lacks, batch)):
            raise DataError(*_lacking(name, [*[None] * number, *map(lacks, chain(batch, rest))]))
        number += len(batch)
        yield from batch
    if not number:
        raise DataError(f"{name}: its data holds no sample.")


def image_of(sample: Sample, number: int) -> Hashable:
    """What samples of one image have in common: its name, or without one its pixels; of no image, nothing."""
    if sample.image_id is not None:
        return sample.image_id
    if sample.image is None:
        return number, "no image"
    return sha256(repr((sample.image.mode, sample.image.size)).encode() + sample.image.tobytes()).digest()


def mean(values: Sequence[float], images: Sequence[Hashable], unit: str, larger_is_better: bool = True) -> Measure:
    """With the standard error of a mean over independent images, whose own values may depend on each other.

    That is √(C/(C − 1)·Σ(Σ(x − mean))²)/n over C images; with one value an image it is s/√n.
    """
    n, total = len(values), math.fsum(values)
    apart: dict[Hashable, float] = {}
    for value, image in zip(values, images, strict=True):
        apart[image] = apart.get(image, 0.0) + value - total / n
    count = len(apart)
    squares = math.fsum(term**2 for term in apart.values())
    error = math.sqrt(count / (count - 1) * squares) / n if count > 1 else math.inf
    return Measure(total / n, n, error, unit, larger_is_better)


def refuse_settings(generation: Generation, batch_size: int) -> None:
    """:raises ValueError: Which a recipe tells with the place it is written at."""
    least = {"num_beams": generation.num_beams, "max_new_tokens": generation.max_new_tokens, "batch_size": batch_size}
    for name, value in least.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is needed")
    if not 0 <= generation.min_new_tokens <= generation.max_new_tokens:
        raise ValueError(
            f"min_new_tokens is {generation.min_new_tokens}; from 0 to max_new_tokens, {generation.max_new_tokens}, is "
            "possible"
        )


def _lacking(name: str, found: Sequence[str | None]) -> Iterator[str]:
    """A sentence for each thing that is lacking.

    :param found: What each sample lacks.
    """
    for what in dict.fromkeys(filter(None, found)):
        numbers = [str(at) for at, one in enumerate(found) if one == what]
        more = ", …" if len(numbers) > NAMED else ""
        listed = f"{', '.join(numbers[:NAMED])}{more}"
        yield f"{name}: {len(numbers)} of {len(found)} samples of its data have no {what}: number {listed}."
