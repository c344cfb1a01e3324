"""The evaluator ``caption`` tells how near what a model says of an image is to what people said of it.

It gives CIDEr-D, BLEU-1 to -4 and ROUGE-L by COCO's own scorers; the ECoFLaP paper measures NoCaps by it. Vedantam et
al., CIDEr, CVPR 2015; Papineni et al., BLEU, ACL 2002; Lin, ROUGE, 2004; Anderson et al., SPICE, ECCV 2016.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from torch import nn

from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import complete
from ecoflap.plugins.evaluators.shared.caption_scores import SCORERS, CaptionMetric, missing_for
from ecoflap.plugins.evaluators.shared.caption_words import words
from ecoflap.plugins.evaluators.shared.checks import check_ability, check_generation
from ecoflap.plugins.evaluators.shared.means import image_of, mean_over_images
from ecoflap.plugins.evaluators.shared.model_calls import shared_texts


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Caption"]]:
    return {"caption": Caption}


@dataclass(frozen=True)
class Caption:
    """Measure captions by COCO's scorers, and the share of them that the model ended itself.

    All captions of an image are its references. Papers print these numbers times 100. Words are cut by
    :mod:`caption_words`, because COCO's own way needs Java. CIDEr weighs words by the references at hand: it tells
    models apart on one set of images, and is not to be compared between sets.

    The standard error takes images as independent. LAVIS' ``min_len`` of 8 counts the token that a decoder begins with.

    :param data: Images with captions, such as ``{use: image_text, samples: null}``.
    :param prompt: What a caption goes on from; empty for none. It is taken off where a model says it again.
    :param num_beams: How many beginnings are gone on with; 1 takes the likeliest token each time.
    :param max_new_tokens: After how many tokens a caption is broken off that does not end by itself.
    :param min_new_tokens: Before how many tokens it may not end.
    :param length_penalty: A beam's log-likelihood is divided by its length to this power.
    :param batch_size: How many images are captioned at a time.
    :param metrics: Some of ``cider``, ``bleu``, ``rouge`` and ``spice``; the last needs Java and a parser of 400 MB.
    """

    data: Dataset
    prompt: str = "a photo of"
    num_beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 8
    length_penalty: float = 1.0
    batch_size: int = 16
    metrics: tuple[CaptionMetric, ...] = ("cider", "bleu", "rouge")

    wants: ClassVar[type[Any]] = Generates

    def __post_init__(self) -> None:
        if not self.metrics:
            raise EcoflapError(f"metrics is empty; some of {', '.join(SCORERS)} are needed")
        check_generation(self._generation)
        refuse_below_one("batch_size", self.batch_size)

    def lacks(self, sample: Sample) -> str | None:
        """Say so where a sample has no caption."""
        return None if _references(sample) else "caption with a word in it"

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is to be installed, before hours are spent."""
        return missing_for(self.metrics)

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process having some of the images captioned, which the first scores."""
        missing = [*missing_for(self.metrics)]
        if missing:
            raise DataError(*(f"caption: {problem}" for problem in missing))
        captioned = self._captioned(model, adapter, note, ranks)
        said, references, ended, images = map(list, zip(*captioned, strict=True))
        silent = said.count("")
        if silent:
            note(f"{silent} of {len(said)} captions are empty.")

        def score() -> dict[str, Measure]:
            scored = [SCORERS[metric](said, references, images) for metric in dict.fromkeys(self.metrics)]
            return {name: measure for measures in scored for name, measure in measures.items()}

        found = ranks.first(score)  # SPICE takes up to 8 GB in each process that runs it
        return {**found, "caption ended": mean_over_images(ended, images, "captions")}

    @property
    def _generation(self) -> Generation:
        return Generation(self.max_new_tokens, self.min_new_tokens, self.num_beams, self.length_penalty)

    def _captioned(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> list["_Captioned"]:
        """Let the model caption every image."""
        check_ability("caption", Generates, adapter, model)
        samples = complete("caption", self.data(adapter, model, note), self.batch_size, self.lacks)
        asked = (replace(sample, question=self.prompt or None) for sample in samples)

        def cut(number: int, sample: Sample, said: Said) -> _Captioned:
            references = [words(text) for text in _references(sample)]
            made = words(self._without_prompt(said.text))
            return _Captioned(made, references, float(said.ended), image_of(sample, number))

        return shared_texts(model, adapter, asked, self._generation, self.batch_size, cut, ranks)

    def _without_prompt(self, text: str) -> str:
        """Take the prompt off, which a model with an encoder may say itself."""
        begins = bool(self.prompt) and text.lower().startswith(f"{self.prompt.lower()} ")
        return text[len(self.prompt) :] if begins else text


class _Captioned(NamedTuple):
    """Holds what a model said of an image, cut into words, with the words of its references.

    :param ended: 1 where the model ended its caption itself, else 0.
    :param image: What captions of one image have in common.
    """

    said: str
    references: list[str]
    ended: float
    image: Hashable


def _references(sample: Sample) -> tuple[str, ...]:
    return tuple(text for text in sample.captions if words(text))
