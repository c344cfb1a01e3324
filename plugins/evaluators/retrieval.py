"""The evaluator ``retrieval`` tells whether a model finds an image's captions among all texts, and the other way round.

    TR@k = the share of images with one of their captions among the k most similar texts
    IR@k = the share of captions with their image among the k most similar images

Karpathy & Fei-Fei, Deep visual-semantic alignments, CVPR 2015; with re-ranking as Li et al., BLIP-2, ICML 2023.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Compares, Matches
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note, ignore
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import batches
from ecoflap.plugins.evaluators.shared.captioned_images import CaptionedImages
from ecoflap.plugins.evaluators.shared.checks import check_ability, why_unable
from ecoflap.plugins.evaluators.shared.means import mean_over_images
from ecoflap.plugins.evaluators.shared.model_calls import embedded_images, embedded_texts
from ecoflap.plugins.evaluators.shared.retrieval_rows import Compared, Match, Nearest, match_nearest
from ecoflap.plugins.evaluators.shared.top_k import Ranked, cutoffs_below, found_within

CUTOFFS = (1, 5, 10)
"""Each k that measures are given for, where it can be missed."""


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Retrieval"]]:
    return {"retrieval": Retrieval}


@dataclass(frozen=True)
class Retrieval:
    """Measure TR@k and IR@k for a k of 1, 5 and 10, each where there are more texts or images than that.

    Texts are all captions of all images. Samples with one name of an image, or without names one picture, are of one
    image; a caption that it has twice counts once. What is equally similar counts as in random order, in the mean over
    all orders. So where two images have a caption of the same words, it is right for the one it is asked of, as in the
    published figures, and each has half a hit; with ``shared`` it is right for both.

    The standard error of TR takes images as independent; so does that of IR, which takes an image's captions together.

    :param data: Images with captions, such as ``{use: image_text, samples: null}``.
    :param rerank: How many of the most similar are put in order by similarity plus the logit of a model's matching
        head, which looks at image and text together: 128 in the papers, for BLIP-2. Each image is then read twice.
    :param shared: Whether a caption is right for all images that have one of the same words.
    :param batch_size: How many images or texts are embedded, and texts are matched, at a time.
    """

    data: Dataset
    rerank: int | None = None
    shared: bool = False
    batch_size: int = 32

    wants: ClassVar[type[Any]] = Compares

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)
        if self.rerank is not None and self.rerank < CUTOFFS[-1]:
            raise EcoflapError(f"rerank is {self.rerank}; at least {CUTOFFS[-1]}, the largest k, is needed")

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the model has no matching head for ``rerank``."""
        return self._unmatched(context.model, context.adapter)

    def lacks(self, sample: Sample) -> str | None:
        """Say so where an image has no caption."""
        return None if sample.captions else "caption"

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process embedding and matching some of the images and texts."""
        self._check(model, adapter)
        pairs = CaptionedImages()
        compared = self._compared(model, adapter, pairs, note, ranks)
        sides: tuple[Iterator[Ranked], Iterator[Ranked]] = compared.texts_of_images(), compared.images_of_texts()
        if self.rerank is not None:
            near_texts, near_images = (Nearest.among(side, self.rerank) for side in sides)
            again = pairs.again(self.data(adapter, model, ignore))  # its notes were told at the first reading
            match_nearest(near_texts, near_images, again, pairs.captions(), self._matching(model, adapter), ranks)
            sides = near_texts.by_both(), near_images.by_both()
        owners, count = pairs.captions().owners.tolist(), len(compared.images)
        return {
            **_measures("TR", sides[0], len(owners), "images", range(count)),
            **_measures("IR", sides[1], count, "captions", owners),
        }

    def _compared(self, model: nn.Module, adapter: Any, pairs: CaptionedImages, note: Note, ranks: Ranks) -> Compared:
        """Read and embed all images and captions.

        :param pairs: Is filled while the data are read.
        """
        samples = pairs.first_of_each(self.data(adapter, model, note))
        images = embedded_images("retrieval", model, adapter, samples, self.batch_size, ranks)
        repeated = pairs.note()
        if repeated:
            note(repeated)
        if len(images) < 2:
            raise DataError("retrieval: its data holds one image, and nothing to tell it from.")
        captions = pairs.captions()
        texts = embedded_texts("retrieval", model, adapter, captions.texts, self.batch_size, ranks)
        there = captions._replace(places=captions.places.to(images.device), owners=captions.owners.to(images.device))
        return Compared(partial(adapter.similarity, model), images, texts, there, self.shared)

    def _matching(self, model: nn.Module, adapter: Any) -> Match:
        """Give the matching head, which looks at texts in batches and without a graph."""

        def match(sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
            with torch.no_grad():
                found = [adapter.match(model, sample, batch) for batch in batches(texts, self.batch_size)]
            return torch.cat(found).cpu()

        return match

    def _check(self, model: nn.Module, adapter: Any) -> None:
        """Refuse a model that cannot compare, or not match what is to be put in order."""
        check_ability("retrieval", Compares, adapter, model)
        unmatched = [*self._unmatched(model, adapter)]
        if unmatched:
            raise ModelError(*unmatched)

    def _unmatched(self, model: nn.Module, adapter: Any) -> Iterator[str]:
        """Say why the nearest cannot be put in order, where that is asked for."""
        why = None if self.rerank is None else why_unable(Matches, adapter, model)
        if why:
            yield (
                "retrieval: rerank needs a model that can match images with texts, such as BLIP-2 for retrieval: "
                f"{why} Leave rerank out."
            )


def _measures(
    side: str, rows: Iterable[Ranked], candidates: int, unit: str, images: Sequence[int]
) -> Mapping[str, Measure]:
    """Measure one side for each k that can be missed.

    :param side: What the measures' names begin with.
    :param rows: The candidates' scores for each image or caption, in slices.
    :param unit: What a row is of.
    :param images: Which image each row is of.
    """
    cutoffs = cutoffs_below(candidates, CUTOFFS)
    columns = torch.cat([found_within(*ranked, cutoffs).cpu() for ranked in rows]).T.tolist()
    return {f"{side}@{k}": mean_over_images(column, images, unit) for k, column in zip(cutoffs, columns, strict=True)}
