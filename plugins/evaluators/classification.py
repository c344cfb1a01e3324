"""The evaluator ``classification`` tells how often an image's class is among those that a model's head finds likeliest.

top-k = the share of images whose class is among the k with the largest logits
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Classifies
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.checks import (
    check_ability,
    check_same_classes,
    check_same_order,
    classes_of,
)
from ecoflap.plugins.evaluators.shared.top_k import class_accuracies, likeliest_classes


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Classification"]]:
    return {"classification": Classification}


@dataclass(frozen=True)
class Classification:
    """Measure top-1 and top-5 accuracy, from 0 to 1; top-5 where there are more than five classes.

    Of sentences on pairs of images it is the share of those that the model rightly takes for true or false.
    Classes that are equally likely count as in random order, in the mean over all orders.

    :param data: Images with the numbers of the classes that the model's head has: ``{use: image, samples: null}``. Of
        folders that are some of the model's classes, the numbers are not the model's. Or sentences on pairs of images:
        ``{use: image_pair, samples: null}``.
    :param batch_size: How many images are classified at a time.
    """

    data: Dataset
    batch_size: int = 32

    wants: ClassVar[type[Any]] = Classifies

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)

    def lacks(self, sample: Sample) -> str | None:
        """Say so where an image has no label."""
        return "label" if sample.label is None else None

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process having some of the images classified."""
        scores_of, samples = self._scores(model, adapter), self.data(adapter, model, note)
        return class_accuracies("classification", samples, self.batch_size, scores_of, ranks)

    def answers(self, model: nn.Module, adapter: Adapter, note: Note) -> Iterator[Answered]:
        """Give the class that the model finds each image's likeliest."""
        return likeliest_classes(
            "classification", self.data(adapter, model, note), self.batch_size, self._scores(model, adapter)
        )

    def _scores(self, model: nn.Module, adapter: Any) -> Callable[[list[Sample]], Float[Tensor, "images classes"]]:
        """Give what scores how well each class fits each image."""
        check_ability("classification", Classifies, adapter, model)
        names = classes_of(self.data)
        check_same_order("classification", names, model)

        def scores_of(batch: list[Sample]) -> Float[Tensor, "images classes"]:
            with torch.no_grad():
                logits: Tensor = adapter.logits(model, batch)
            check_same_classes("classification", names, logits.shape[1], "the model's head has")
            return logits

        return scores_of
