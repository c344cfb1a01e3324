"""Samples are read in batches, so that no more images than those of one batch are held."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, first_of

Thing = TypeVar("Thing")
_NAMED = 5
"""How many of the samples that lack something a message names."""


def batches(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    """Yield things in lists of one size, of which the last may be shorter."""
    rest = iter(things)
    while batch := list(islice(rest, size)):
        yield batch


def complete(
    name: str, samples: Iterable[Sample], size: int, lacks: Callable[[Sample], str | None]
) -> Iterator[Sample]:
    """Yield the same samples, each batch of them looked through before the first of it is yielded.

    :param name: The evaluator's name, for messages.
    :param size: How many samples are a batch.
    :param lacks: Names what a sample is without, such as ``answer``; None where it has all.
    :raises DataError: With every sample that lacks something, where one does; or where there is no sample.
    """
    number, rest = 0, iter(samples)
    for batch in batches(rest, size):
        if any(map(lacks, batch)):
            raise DataError(*_lacking(name, [*[None] * number, *map(lacks, chain(batch, rest))]))
        number += len(batch)
        yield from batch
    if not number:
        raise DataError(f"{name}: its data holds no sample.")


def _lacking(name: str, found: Sequence[str | None]) -> Iterator[str]:
    """Give a sentence for each thing that is lacking.

    :param found: What each sample lacks.
    """
    for what in dict.fromkeys(filter(None, found)):
        numbers = [str(at) for at, one in enumerate(found) if one == what]
        which = first_of(numbers, _NAMED)
        yield f"{name}: {len(numbers)} of {len(found)} samples of its data have no {what}: number {which}."
