"""Captions: how near what a model says of an image is to what people said of it. The paper's measure for NoCaps."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from ecoflap.core.contracts.abilities import Generates, Generation
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.caption_scores import SCORERS, Metric, missing_for
from ecoflap.plugins.evaluators.shared.caption_words import words
from ecoflap.plugins.evaluators.shared.generating import complete, image_of, mean, refuse_settings, said_of


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Caption"]]:
    return {"caption": Caption}


@dataclass(frozen=True)
class Caption:
    """CIDEr-D, BLEU-1 to -4 and ROUGE-L, as COCO's scorers give them, and the share of captions a model ended itself.

    All captions of an image are its references. Papers print these numbers times 100. Words are cut by
    :mod:`caption_words`, for COCO's own way needs Java. CIDEr weighs words by the references at hand: it tells models
    apart on one set of images and is not to be compared between sets.

    The standard error takes images as independent. LAVIS' ``min_len`` of 8 counts the token that a decoder begins with.

    :param data: Images with captions, such as ``{use: image_text, samples: null}``.
    :param prompt: What a caption goes on from; empty for none. It is taken off where a model says it again.
    :param num_beams: How many beginnings are gone on with; 1 takes the likeliest token each time.
    :param max_new_tokens: Where a caption is broken off that does not end by itself.
    :param min_new_tokens: Before this many it may not end.
    :param length_penalty: A beam's log-likelihood is divided by its length to this power.
    :param batch_size: Images that are captioned at a time.
    :param metrics: Of ``cider``, ``bleu``, ``rouge`` and ``spice``; the last needs Java and a parser of 400 MB.
    """

    data: Dataset
    prompt: str = "a photo of"
    num_beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 8
    length_penalty: float = 1.0
    batch_size: int = 16
    metrics: tuple[Metric, ...] = ("cider", "bleu", "rouge")
    notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    wants: ClassVar = Generates

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError(f"metrics is empty; some of {', '.join(SCORERS)} are needed")
        refuse_settings(self._generation, self.batch_size)

    def problems(self, anatomy: Any = None, recipe: Any = None) -> Iterator[str]:
        """What is to be installed before hours are spent."""
        yield from missing_for(self.metrics)

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        missing = [*self.problems()]
        if missing:
            raise DataError(*(f"caption: {problem}" for problem in missing))
        said: list[str] = []
        references: list[list[str]] = []
        ended: list[float] = []
        images: list[Hashable] = []
        samples = complete("caption", self.data(adapter, model), self.batch_size, _lacks)
        pairs = said_of("caption", model, adapter, samples, self._generation, self.batch_size, self._asked)
        for number, (sample, made) in enumerate(pairs):
            said.append(words(self._own(made.text)))
            references.append([words(text) for text in _references(sample)])
            ended.append(float(made.ended))
            images.append(image_of(sample, number))
        silent = said.count("")
        self.notes[:] = [f"{silent} of {len(said)} captions are empty."] if silent else []
        scored = [SCORERS[metric](said, references, images) for metric in dict.fromkeys(self.metrics)]
        found = {name: measure for measures in scored for name, measure in measures.items()}
        return {**found, "caption ended": mean(ended, images, "captions")}

    @property
    def _generation(self) -> Generation:
        return Generation(self.max_new_tokens, self.min_new_tokens, self.num_beams, self.length_penalty)

    def _asked(self, sample: Sample) -> Sample:
        return replace(sample, question=self.prompt or None)

    def _own(self, text: str) -> str:
        """Without the prompt, which a model with an encoder may say itself."""
        begins = bool(self.prompt) and text.lower().startswith(f"{self.prompt.lower()} ")
        return text[len(self.prompt) :] if begins else text


def _references(sample: Sample) -> tuple[str, ...]:
    return tuple(text for text in sample.captions if words(text))


def _lacks(sample: Sample) -> str | None:
    return None if _references(sample) else "caption with a word in it"
