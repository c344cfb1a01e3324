"""What evaluators share that have a model embed images and texts: in batches, without a graph, and only if it can."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import offers
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.plugins.evaluators.shared.ranking import Ranked

Thing = TypeVar("Thing")
CELLS = 2**24
"""Similarities held at a time: 64 MiB of them, and a few times as much while they are ranked."""


def check_ability(name: str, ability: Any, adapter: Any, model: nn.Module) -> None:
    """As a plan does, for an evaluator that is called by itself.

    :raises ModelError: Where this model cannot be asked for it.
    """
    why = None
    if not offers(adapter, ability):
        why = f"{type(adapter).__name__} has none."
    elif hasattr(adapter, "refuses"):
        why = adapter.refuses(model, ability)
    if why:
        raise ModelError(f"{name} needs a model that can {ability.does}: {why}")


def batches(things: Iterable[Thing], size: int) -> Iterator[list[Thing]]:
    """One after the other; the last may be shorter."""
    rest = iter(things)
    while batch := list(islice(rest, size)):
        yield batch


def embedded_images(
    name: str, model: nn.Module, adapter: Any, samples: Iterable[Sample], size: int
) -> Float[Tensor, "images ..."]:
    """Of samples that are read as they are needed, so that no more than a batch of images is held."""
    with torch.no_grad():
        found = [adapter.embed_images(model, batch) for batch in batches(samples, size)]
    if not found:
        raise DataError(f"{name}: its data holds no image.")
    return _finite(name, torch.cat(found))


def embedded_texts(
    name: str, model: nn.Module, adapter: Any, texts: Sequence[str], size: int
) -> Float[Tensor, "texts features"]:
    """In their order. Texts of like length are embedded together, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    with torch.no_grad():
        found = [adapter.embed_texts(model, [texts[n] for n in batch]) for batch in batches(order, size)]
    place = torch.tensor(order).argsort()
    made = torch.cat(found)
    return _finite(name, made[place.to(made.device)])


def _finite(name: str, made: Tensor) -> Tensor:
    if not made.isfinite().all():
        raise ModelError(f"{name}: the model's embeddings are not finite; the model is broken.")
    return made


@dataclass(frozen=True, eq=False)
class Compared:
    """Images and captions that are compared a slice at a time.

    :param texts: Of distinct texts, so that those of one wording are equally similar to the last bit.
    :param owners: Which image each caption is of.
    :param places: Which of the texts each caption is.
    :param shared: Whether a text is right for all images that have it, not for the one alone that a caption is of.
    """

    model: nn.Module
    adapter: Any
    images: Float[Tensor, "images ..."]
    texts: Float[Tensor, "texts features"]
    owners: Int64[Tensor, " captions"]
    places: Int64[Tensor, " captions"]
    shared: bool = False

    @cached_property
    def _has(self) -> Bool[Tensor, "images texts"]:
        """Which texts each image has."""
        has = torch.zeros(len(self.images), len(self.texts), dtype=torch.bool, device=self.owners.device)
        has[self.owners, self.places] = True
        return has

    def texts_of_images(self) -> Iterator[Ranked]:
        """A row for each image, of all captions."""
        for start, images in _slices(self.images, len(self.owners)):
            numbers = torch.arange(start, start + len(images), device=self.owners.device)
            right = self._has[numbers][:, self.places] if self.shared else self.owners == numbers[:, None]
            yield self._similarity(images, self.texts)[:, self.places], right

    def images_of_texts(self) -> Iterator[Ranked]:
        """A row for each caption, of all images."""
        numbers = torch.arange(len(self.images), device=self.owners.device)
        for start, places in _slices(self.places, len(self.images)):
            owners = self.owners[start : start + len(places)]
            right = self._has.T[places] if self.shared else owners[:, None] == numbers
            yield self._similarity(self.images, self.texts[places]).T, right

    def _similarity(
        self, images: Float[Tensor, "images ..."], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        with torch.no_grad():
            found: Tensor = self.adapter.similarity(self.model, images, texts)
        return found


def _slices(rows: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """So many rows that all of their columns are held, with the number of the first."""
    size = max(1, CELLS // columns)
    return ((start, rows[start : start + size]) for start in range(0, len(rows), size))
