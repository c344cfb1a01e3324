"""The second stage of retrieval: the nearest of the first are put in order by a head that looks at both together.

As in LAVIS a candidate's score is its similarity plus the matching head's logit. Li et al., BLIP-2, ICML 2023.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ecoflap.core.contracts.records import Sample
from ecoflap.plugins.evaluators.shared.ranking import Ranked

Match = Callable[[Sample, Sequence[str]], Float[Tensor, " texts"]]
"""How well each of some texts fits one image."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """Of each row the candidates with the largest similarity. All others are as good as lost.

    :param numbers: Which candidates they are.
    :param right: Whether they are right.
    :param matched: By the matching head; filled an image at a time.
    """

    similarity: Float[Tensor, "rows nearest"]
    numbers: Int64[Tensor, "rows nearest"]
    right: Bool[Tensor, "rows nearest"]
    matched: Float[Tensor, "rows nearest"]

    @classmethod
    def among(cls, side: Iterable[Ranked], count: int) -> "Nearest":
        """So many, or all there are."""
        similarity, numbers, right = [], [], []
        for scores, is_right in side:
            best, places = scores.topk(min(count, scores.shape[1]))
            similarity.append(best.cpu())
            numbers.append(places.cpu())
            right.append(is_right.gather(1, places).cpu())
        best = torch.cat(similarity)
        return cls(best, torch.cat(numbers), torch.cat(right), torch.full_like(best, torch.nan))

    def by_both(self) -> Iterator[Ranked]:
        """Similarity and match added."""
        yield self.similarity + self.matched, self.right


def match_again(
    texts_of_images: Nearest,
    images_of_texts: Nearest,
    images: Iterable[tuple[int, Sample]],
    texts: Sequence[str],
    places: Int64[Tensor, " captions"],
    match: Match,
) -> None:
    """Fill in what the matching head finds, an image and all texts that it is a candidate of or for at a time.

    :param images: Each once more, with its number.
    :param places: Which of the texts each caption is.
    """
    for number, sample in images:
        near = places[texts_of_images.numbers[number]]
        captions, columns = (images_of_texts.numbers == number).nonzero(as_tuple=True)
        wanted = torch.cat([near, places[captions]]).unique()
        found = torch.full((len(texts),), torch.nan)
        found[wanted] = match(sample, [texts[place] for place in wanted.tolist()]).to(found)
        texts_of_images.matched[number] = found[near]
        images_of_texts.matched[captions, columns] = found[places[captions]]
