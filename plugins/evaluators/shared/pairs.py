"""Images with their captions, each image once, however a data set writes them down."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.generating import image_of


@dataclass
class Pairs:
    """Fills while samples are read.

    :param numbers: Of each image, in the order they first came, by what it is known by.
    :param captions: Each with the number of its image.
    """

    numbers: dict[Hashable, int] = field(default_factory=dict)
    captions: list[tuple[int, str]] = field(default_factory=list)
    samples: int = 0

    def new(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Those whose image comes for the first time. Captions are taken of all."""
        known: set[tuple[int, str]] = set()
        for sample in samples:
            number, is_new = self._number(sample)
            own = {(number, text): None for text in _captions(sample, self.samples)}
            self.captions += [caption for caption in own if caption not in known]
            known |= own.keys()
            self.samples += 1
            if is_new:
                yield sample

    def again(self, samples: Iterable[Sample]) -> Iterator[tuple[int, Sample]]:
        """Each image once more, with its number.

        :raises DataError: Where the data are not the same.
        """
        left = set(self.numbers.values())
        for sample in samples:
            number = self.numbers.get(image_of(sample, 0))
            if number in left:
                left.remove(number)
                yield number, sample
        if left:
            raise DataError(f"retrieval: {len(left)} of {len(self.numbers)} images were not there on a second reading.")

    def distinct(self) -> tuple[list[str], Int64[Tensor, " captions"]]:
        """The texts there are, and which of them each caption is."""
        texts = list(dict.fromkeys(text for _, text in self.captions))
        place = {text: number for number, text in enumerate(texts)}
        return texts, torch.tensor([place[text] for _, text in self.captions])

    def owners(self) -> Int64[Tensor, " captions"]:
        """The number of each caption's image."""
        return torch.tensor([number for number, _ in self.captions])

    def notes(self) -> list[str]:
        """What was made of images that came several times."""
        again = self.samples - len(self.numbers)
        if not again:
            return []
        return [f"{again} of {self.samples} samples have an image that came before, and add their captions to it"]

    def _number(self, sample: Sample) -> tuple[int, bool]:
        count = len(self.numbers)
        number = self.numbers.setdefault(image_of(sample, 0), count)
        return number, number == count


def _captions(sample: Sample, number: int) -> tuple[str, ...]:
    captions = sample.captions
    if sample.image is None or not captions:
        lacks = "image" if sample.image is None else "caption"
        raise DataError(
            f"retrieval: sample {number} of its data has no {lacks}. It needs images with captions, such as those of "
            f"image_text without prefix."
        )
    return captions
