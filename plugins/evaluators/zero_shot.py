"""The evaluator ``zero_shot`` classifies an image by the class whose name, put into sentences, is most similar to it.

    top-k = the share of images whose class is among the k with the most similar text embeddings

Radford et al., Learning transferable visual models from natural language supervision (CLIP), ICML 2021, section 3.1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Compares
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import DatasetOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.checks import (
    check_ability,
    check_same_classes,
    classes_of,
)
from ecoflap.plugins.evaluators.shared.class_prompts import (
    BLANK,
    checked,
    classes_in,
    classes_named,
    filled,
    templates_named,
)
from ecoflap.plugins.evaluators.shared.model_calls import embedded_texts
from ecoflap.plugins.evaluators.shared.top_k import class_accuracies, likeliest_classes


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["ZeroShot"]]:
    return {"zero_shot": ZeroShot}


@dataclass(frozen=True)
class ZeroShot:
    """Measure top-1 and top-5 accuracy, from 0 to 1; top-5 where there are more than five classes.

    A class is the mean of its sentences' embeddings, each of length one, brought to length one. Classes that are
    equally similar count as in random order, in the mean over all orders.

    :param data: Images with the numbers of their classes: ``{use: image, samples: null}``.
    :param classes: Their names in the order of these numbers: a list, a file with a name a line, or ``openai_imagenet``
        for the thousand of ImageNet as open_clip has them. None takes the data's own, with blanks for ``_``.
    :param templates: Sentences with ``{}`` where the class goes; or ``openai_imagenet``, the 80 of CLIP for ImageNet,
        or ``simple_imagenet``, seven of them, as open_clip has them.
    :param batch_size: How many images or sentences are embedded at a time.
    """

    data: Dataset
    classes: Literal["openai_imagenet"] | tuple[str, ...] | Path | None = None
    templates: Literal["openai_imagenet", "simple_imagenet"] | tuple[str, ...] = ("a photo of a {}.",)
    batch_size: int = 32

    wants: ClassVar[type[Any]] = Compares

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)
        if isinstance(self.templates, tuple):
            without = [template for template in self.templates if BLANK not in template]
            if without or not self.templates:
                problem = f"{without[0]!r} has no {BLANK}" if without else "there are none"
                raise EcoflapError(f"templates: {problem}, which is where a class goes, as in 'a photo of a {BLANK}.'")

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is wrong with classes and templates. Nothing is fetched for the names of the data's classes."""
        names: Callable[[], object] = self._given_names
        if not options_of(DatasetOptions, self.data).fetches:
            with suppress(EcoflapError):  # what is wrong with the data, they say themselves
                names = partial(self._names_beside, classes_of(self.data))
        for check in (self._sentences, names):
            try:
                check()
            except EcoflapError as error:
                yield from error.problems

    def lacks(self, sample: Sample) -> str | None:
        """Say so where an image has no label."""
        return "label" if sample.label is None else None

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process having some of the images classified."""
        scores_of, samples = self._scores(model, adapter), self.data(adapter, model, note)
        return class_accuracies("zero_shot", samples, self.batch_size, scores_of, ranks, "zero-shot ")

    def answers(self, model: nn.Module, adapter: Adapter, note: Note) -> Iterator[Answered]:
        """Give the class whose sentences the model finds most similar to each image."""
        return likeliest_classes(
            "zero_shot", self.data(adapter, model, note), self.batch_size, self._scores(model, adapter)
        )

    def classifier(self, model: nn.Module, adapter: Adapter) -> Float[Tensor, "classes features"]:
        """Embed the classes, as a vision tower alone takes them in a file for its ``classifier:``."""
        names, templates = self._names(), self._sentences()
        texts = [text for name in names for text in filled(templates, name)]
        vectors = embedded_texts("zero_shot", model, adapter, texts, self.batch_size)
        means = F.normalize(vectors, dim=-1).unflatten(0, (len(names), len(templates))).mean(1)
        return F.normalize(means, dim=-1)

    def _scores(self, model: nn.Module, adapter: Any) -> Callable[[list[Sample]], Float[Tensor, "images classes"]]:
        """Give what scores how well each class fits each image."""
        check_ability("zero_shot", Compares, adapter, model)
        classifier = self.classifier(model, adapter)

        def scores_of(batch: list[Sample]) -> Float[Tensor, "images classes"]:
            with torch.no_grad():
                scores: Tensor = adapter.similarity(model, adapter.embed_images(model, batch), classifier)
            return scores

        return scores_of

    def _names(self) -> Sequence[str]:
        return self._names_beside(classes_of(self.data))

    def _names_beside(self, own: Sequence[str] | None) -> Sequence[str]:
        """Give the classes' names, those of the parameter before the data's own.

        :raises DataError: Where there are none, or others than the data have.
        """
        given = self._given_names()
        if given is not None:
            check_same_classes("zero_shot", own, len(given), "classes names")
            return given
        if own is None:
            raise DataError(
                "zero_shot: the data does not know what its classes are called. Give classes: a list of names, a file "
                "with a name a line, or openai_imagenet."
            )
        return checked([name.replace("_", " ") for name in own])

    def _given_names(self) -> Sequence[str] | None:
        """Give the names that the parameter says; None where it says none."""
        if self.classes is None:
            return None
        if isinstance(self.classes, Path):
            return checked(classes_in(self.classes))
        return checked(classes_named(self.classes) if isinstance(self.classes, str) else self.classes)

    def _sentences(self) -> Sequence[str]:
        return self.templates if isinstance(self.templates, tuple) else templates_named(self.templates)
