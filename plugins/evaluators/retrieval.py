"""Retrieval: whether a model finds an image's captions among all texts (TR@k), and a caption's image among all (IR@k).

Karpathy & Fei-Fei, Deep visual-semantic alignments, CVPR 2015; with re-ranking as Li et al., BLIP-2, ICML 2023.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Compares
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.plugins.evaluators.shared.comparing import (
    Compared,
    batches,
    check_ability,
    embedded_images,
    embedded_texts,
)
from ecoflap.plugins.evaluators.shared.generating import mean
from ecoflap.plugins.evaluators.shared.pairs import Pairs
from ecoflap.plugins.evaluators.shared.ranking import Ranked, cutoffs_below, found_within
from ecoflap.plugins.evaluators.shared.reranking import Match, Nearest, match_again

CUTOFFS = (1, 5, 10)


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Retrieval"]]:
    return {"retrieval": Retrieval}


@dataclass(frozen=True)
class Retrieval:
    """The share of images with one of their captions among the k most similar texts, and that of captions with their
    image among the k most similar images. k is 1, 5 and 10, as far as there are more texts or images than that.

    Texts are all captions of all images. Samples with one name of an image, or without names one picture, are of one
    image; a caption that it has twice counts once. What is equally similar counts as in random order, in the mean over
    all orders. So where two images have a caption of the same words, it is right for the one it is asked of, as in the
    published figures, and each has half a hit; with ``shared`` it is right for both.

    The standard error of TR takes images as independent; so does that of IR, which takes an image's captions together.

    :param data: Images with captions, such as ``{use: image_text, samples: null}``.
    :param rerank: So many of the most similar are put in order by similarity plus the logit of a model's matching head,
        which looks at image and text together: 128 in the papers, for BLIP-2. Each image is then read twice.
    :param shared: Whether a caption is right for all images that have one of the same words.
    :param batch_size: Images or texts that are embedded, and texts that are matched, at a time.
    """

    data: Dataset
    rerank: int | None = None
    shared: bool = False
    batch_size: int = 32
    notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    wants: ClassVar = Compares

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")
        if self.rerank is not None and self.rerank < CUTOFFS[-1]:
            raise ValueError(f"rerank is {self.rerank}; at least {CUTOFFS[-1]}, the largest k, is needed")

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        self._check(model, adapter)
        pairs = Pairs()
        images = embedded_images("retrieval", model, adapter, pairs.new(self.data(adapter, model)), self.batch_size)
        self.notes[:] = pairs.notes()
        if len(images) < 2:
            raise DataError("retrieval: its data holds one image, and nothing to tell it from.")
        texts, places = pairs.distinct()
        vectors = embedded_texts("retrieval", model, adapter, texts, self.batch_size)
        owners = pairs.owners()
        device = images.device
        compared = Compared(model, adapter, images, vectors, owners.to(device), places.to(device), self.shared)
        sides = compared.texts_of_images(), compared.images_of_texts()
        if self.rerank is not None:
            near_texts, near_images = (Nearest.among(side, self.rerank) for side in sides)
            again = pairs.again(self.data(adapter, model))
            match_again(near_texts, near_images, again, texts, places, self._matching(model, adapter))
            sides = near_texts.by_both(), near_images.by_both()
        return {
            **_measures("TR", sides[0], len(owners), "images", range(len(images))),
            **_measures("IR", sides[1], len(images), "captions", owners.tolist()),
        }

    def _matching(self, model: nn.Module, adapter: Any) -> Match:
        """The matching head, in batches of texts and without a graph."""

        def match(sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
            with torch.no_grad():
                found = [adapter.match(model, sample, batch) for batch in batches(texts, self.batch_size)]
            return torch.cat(found).cpu()

        return match

    def _check(self, model: nn.Module, adapter: Any) -> None:
        check_ability("retrieval", Compares, adapter, model)
        if self.rerank is not None and not hasattr(adapter, "match"):
            raise ModelError(
                "retrieval: rerank needs a model with a matching head, such as BLIP-2 for retrieval, and "
                f"{type(adapter).__name__} knows none. Leave rerank out."
            )


def _measures(
    side: str, rows: Iterable[Ranked], candidates: int, unit: str, images: Sequence[int]
) -> Mapping[str, Measure]:
    """One for each k that can be missed.

    :param images: Which image each row is of.
    """
    cutoffs = cutoffs_below(candidates, CUTOFFS)
    columns = torch.cat([found_within(*ranked, cutoffs).cpu() for ranked in rows]).T.tolist()
    return {f"{side}@{k}": mean(column, images, unit) for k, column in zip(cutoffs, columns, strict=True)}
