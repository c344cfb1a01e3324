"""Zero-shot classification: an image is of the class whose name, put into sentences, is most similar to it.

Radford et al., Learning transferable visual models from natural language supervision (CLIP), ICML 2021, section 3.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Compares
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.plugins.evaluators.shared.comparing import check_ability, embedded_texts
from ecoflap.plugins.evaluators.shared.prompts import (
    BLANK,
    checked,
    classes_in,
    classes_named,
    filled,
    templates_named,
)
from ecoflap.plugins.evaluators.shared.sorting import accuracies


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["ZeroShot"]]:
    return {"zero_shot": ZeroShot}


@dataclass(frozen=True)
class ZeroShot:
    """Top-1 and top-5 accuracy from 0 to 1; top-5 where there are more than five classes.

    A class is the mean of its sentences' embeddings, each of length one, brought to length one. Classes that are
    equally similar count as in random order, in the mean over all orders.

    :param data: Images with the numbers of their classes: ``{use: image, samples: null}``.
    :param classes: Their names in the order of these numbers: a list, a file with a name a line, or ``openai_imagenet``
        for the thousand of ImageNet as open_clip has them. None takes the data's own, with blanks for ``_``.
    :param templates: Sentences with ``{}`` where the class goes; or ``openai_imagenet``, the 80 of CLIP for ImageNet,
        or ``simple_imagenet``, seven of them, as open_clip has them.
    :param batch_size: Images or sentences at a time.
    """

    data: Dataset
    classes: Literal["openai_imagenet"] | tuple[str, ...] | Path | None = None
    templates: Literal["openai_imagenet", "simple_imagenet"] | tuple[str, ...] = ("a photo of a {}.",)
    batch_size: int = 32

    wants: ClassVar = Compares

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")
        if isinstance(self.templates, tuple):
            without = [template for template in self.templates if BLANK not in template]
            if without or not self.templates:
                told = f"{without[0]!r} has no {BLANK}" if without else "there are none"
                raise ValueError(f"templates: {told}, which is where a class goes, as in 'a photo of a {BLANK}.'")

    def problems(self, anatomy: Anatomy | None = None, recipe: Any = None) -> Iterator[str]:
        """What is wrong with classes and templates. Data of the hub are not read for the names of theirs."""
        asked = [self._sentences]
        if self.classes is not None or getattr(self.data, "dataset", None) is None:
            asked.append(self._names)
        for ask in asked:
            try:
                ask()
            except EcoflapError as error:
                yield from (problem for problem in error.problems if problem.startswith("zero_shot: "))

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        reader: Any = adapter
        check_ability("zero_shot", Compares, reader, model)
        classifier = self.classifier(model, adapter)

        def classes_of(batch: list[Sample]) -> Float[Tensor, "images classes"]:
            with torch.no_grad():
                scores: Tensor = reader.similarity(model, reader.embed_images(model, batch), classifier)
            return scores

        return accuracies("zero_shot", self.data(adapter, model), self.batch_size, classes_of, "zero-shot ")

    def classifier(self, model: nn.Module, adapter: Adapter) -> Float[Tensor, "classes features"]:
        """The text embeddings of the classes, as a vision tower alone takes them in a file for its ``classifier:``."""
        names, templates = self._names(), self._sentences()
        texts = [text for name in names for text in filled(templates, name)]
        vectors = embedded_texts("zero_shot", model, adapter, texts, self.batch_size)
        means = F.normalize(vectors, dim=-1).unflatten(0, (len(names), len(templates))).mean(1)
        return F.normalize(means, dim=-1)

    def _names(self) -> Sequence[str]:
        """:raises DataError: Where there are none, or others than the data have."""
        own: Sequence[str] | None = getattr(self.data, "classes", None)
        if self.classes is not None:
            given = checked(self._given(self.classes))
            if own is not None and len(own) != len(given):
                raise DataError(
                    f"zero_shot: the data has {len(own)} classes ({', '.join(own[:3])} …), and classes names "
                    f"{len(given)}: their numbers mean something else."
                )
            return given
        if own is None:
            raise DataError(
                "zero_shot: the data does not know what its classes are called. Give classes: a list of names, a file "
                "with a name a line, or openai_imagenet."
            )
        return checked([name.replace("_", " ") for name in own])

    def _given(self, classes: str | tuple[str, ...] | Path) -> Sequence[str]:
        if isinstance(classes, Path):
            return classes_in(classes)
        return classes_named(classes) if isinstance(classes, str) else classes

    def _sentences(self) -> Sequence[str]:
        return self.templates if isinstance(self.templates, tuple) else templates_named(self.templates)
