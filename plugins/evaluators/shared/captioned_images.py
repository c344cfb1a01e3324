"""Images and their captions are gathered, each image once, however a data set writes them down."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.means import image_of


class Captions(NamedTuple):
    """Holds the captions of several images.

    :param texts: The distinct texts, so that captions of one wording are equally similar to the last bit.
    :param places: Which of the texts each caption is.
    :param owners: The number of each caption's image.
    """

    texts: list[str]
    places: Int64[Tensor, " captions"]
    owners: Int64[Tensor, " captions"]


@dataclass
class CaptionedImages:
    """Gather images and captions while samples are read.

    :param numbers: The number of each image, in the order they first came, by what it is known by.
    :param pairs: Each caption with the number of its image.
    :param samples: How many samples were read.
    """

    numbers: dict[Hashable, int] = field(default_factory=dict)
    pairs: list[tuple[int, str]] = field(default_factory=list)
    samples: int = 0

    def first_of_each(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples whose image comes for the first time. The captions of all samples are gathered."""
        known: set[tuple[int, str]] = set()
        for sample in samples:
            number, is_new = self._number(sample)
            own = {(number, text): None for text in _captions(sample, self.samples)}
            self.pairs += [pair for pair in own if pair not in known]
            known |= own.keys()
            self.samples += 1
            if is_new:
                yield sample

    def again(self, samples: Iterable[Sample]) -> Iterator[tuple[int, Sample]]:
        """Yield each image once more, with its number.

        :raises DataError: Where the data are not the same as before.
        """
        left = set(self.numbers.values())
        for sample in samples:
            number = self.numbers.get(image_of(sample, 0))
            if number in left:
                left.remove(number)
                yield number, sample
        if left:
            raise DataError(f"retrieval: {len(left)} of {len(self.numbers)} images were not there on a second reading.")

    def captions(self) -> Captions:
        """Give all captions that were gathered."""
        texts = list(dict.fromkeys(text for _, text in self.pairs))
        place = {text: number for number, text in enumerate(texts)}
        places, owners = ([place[text] for _, text in self.pairs], [number for number, _ in self.pairs])
        return Captions(texts, torch.tensor(places), torch.tensor(owners))

    def note(self) -> str | None:
        """Say what was made of images that came several times; None where none did."""
        repeated = self.samples - len(self.numbers)
        if not repeated:
            return None
        return f"{repeated} of {self.samples} samples have an image that came before, and add their captions to it."

    def _number(self, sample: Sample) -> tuple[int, bool]:
        """Give the number of a sample's image, and whether it is new."""
        count = len(self.numbers)
        number = self.numbers.setdefault(image_of(sample, 0), count)
        return number, number == count


def _captions(sample: Sample, number: int) -> tuple[str, ...]:
    """Give a sample's captions, of which it has to have one, and an image.

    :param number: The sample's own number, for messages.
    """
    captions = sample.captions
    if sample.image is None or not captions:
        lacks = "image" if sample.image is None else "caption"
        raise DataError(
            f"retrieval: sample {number} of its data has no {lacks}. It needs images with captions, such as those of "
            f"image_text without prefix."
        )
    return captions
