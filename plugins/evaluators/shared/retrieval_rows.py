"""Images and captions are compared a slice of rows at a time, and a second stage puts the nearest in order.

As in LAVIS, a candidate's score in the second stage is its similarity plus the logit of a matching head that looks at
image and text together. Li et al., BLIP-2, ICML 2023.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ecoflap.core.contracts.records import Sample
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.plugins.evaluators.shared.captioned_images import Captions
from ecoflap.plugins.evaluators.shared.top_k import Ranked

CELLS = 2**24
"""Similarities held at a time: 64 MiB of them, and a few times as much while they are ranked."""

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Tells how well each text fits each image, ``[images, texts]``, by the embeddings of both."""

Match = Callable[[Sample, Sequence[str]], Float[Tensor, " texts"]]
"""Tells how well each of some texts fits one image."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Compares images with captions, a slice at a time.

    :param similarity: Compares embeddings.
    :param images: The images' embeddings.
    :param texts: Those of the captions' distinct texts.
    :param captions: The captions, with tensors on the embeddings' device.
    :param shared: Whether a text is right for all images that have it, and not for the one alone that a caption is of.
    """

    similarity: Similarity
    images: Float[Tensor, "images ..."]
    texts: Float[Tensor, "texts features"]
    captions: Captions
    shared: bool = False

    @cached_property
    def _has(self) -> Bool[Tensor, "images texts"]:
        """Say which texts each image has."""
        owners = self.captions.owners
        has = torch.zeros(len(self.images), len(self.texts), dtype=torch.bool, device=owners.device)
        has[owners, self.captions.places] = True
        return has

    def texts_of_images(self) -> Iterator[Ranked]:
        """Rank all captions for each image: a row for each image, in slices."""
        owners, places = self.captions.owners, self.captions.places
        for start, images in _slices(self.images, len(owners)):
            numbers = torch.arange(start, start + len(images), device=owners.device)
            right = self._has[numbers][:, places] if self.shared else owners == numbers[:, None]
            yield self._similarities(images, self.texts)[:, places], right

    def images_of_texts(self) -> Iterator[Ranked]:
        """Rank all images for each caption: a row for each caption, in slices."""
        numbers = torch.arange(len(self.images), device=self.captions.owners.device)
        for start, places in _slices(self.captions.places, len(self.images)):
            owners = self.captions.owners[start : start + len(places)]
            right = self._has.T[places] if self.shared else owners[:, None] == numbers
            yield self._similarities(self.images, self.texts[places]).T, right

    def _similarities(
        self, images: Float[Tensor, "images ..."], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        with torch.no_grad():
            return self.similarity(images, texts)


def _slices(rows: Tensor, columns: int) -> Iterator[tuple[int, Tensor]]:
    """Yield as many rows as may be held with all of their columns, with the number of the first."""
    size = max(1, CELLS // columns)
    return ((start, rows[start : start + size]) for start in range(0, len(rows), size))


@dataclass(frozen=True, eq=False)
class Nearest:
    """Holds the candidates of each row with the largest similarity. All others are as good as lost.

    :param numbers: Which candidates they are.
    :param right: Whether they are right.
    :param matched: The matching head's logits, filled in an image at a time.
    """

    similarity: Float[Tensor, "rows nearest"]
    numbers: Int64[Tensor, "rows nearest"]
    right: Bool[Tensor, "rows nearest"]
    matched: Float[Tensor, "rows nearest"]

    @classmethod
    def among(cls, slices: Iterable[Ranked], count: int) -> "Nearest":
        """Take so many candidates of each row, or all there are."""
        similarity, numbers, right = [], [], []
        for scores, is_right in slices:
            best, places = scores.topk(min(count, scores.shape[1]))
            similarity.append(best.cpu())
            numbers.append(places.cpu())
            right.append(is_right.gather(1, places).cpu())
        best = torch.cat(similarity)
        return cls(best, torch.cat(numbers), torch.cat(right), torch.full_like(best, torch.nan))

    def by_both(self) -> Iterator[Ranked]:
        """Rank them by similarity and match added."""
        yield self.similarity + self.matched, self.right


def match_nearest(
    texts_of_images: Nearest,
    images_of_texts: Nearest,
    images: Iterable[tuple[int, Sample]],
    captions: Captions,
    match: Match,
    ranks: Ranks,
) -> None:
    """Fill in what the matching head says, for an image and all texts that it is a candidate of or for at a time.

    :param images: Each image once more, with its number.
    :param captions: All captions, with tensors on the CPU.
    :param ranks: The processes that look at a share of the images each.
    """
    texts, places, _ = captions

    def matched(numbered: tuple[int, Sample]) -> tuple[int, Float[Tensor, " near"], Float[Tensor, " rows"]]:
        number, sample = numbered
        near = places[texts_of_images.numbers[number]]
        rows, _ = (images_of_texts.numbers == number).nonzero(as_tuple=True)
        wanted = torch.cat([near, places[rows]]).unique()
        found = torch.full((len(texts),), torch.nan)
        found[wanted] = match(sample, [texts[place] for place in wanted.tolist()]).to(found)
        return number, found[near], found[places[rows]]

    for number, of_image, of_texts in ranks.deal(images, matched):
        texts_of_images.matched[number] = of_image
        images_of_texts.matched[images_of_texts.numbers == number] = of_texts
