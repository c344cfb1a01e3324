"""Classification by a model's own head: the share of images whose class is among the k most likely."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.contracts.abilities import Classifies
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.comparing import check_ability
from ecoflap.plugins.evaluators.shared.sorting import accuracies


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Classification"]]:
    return {"classification": Classification}


@dataclass(frozen=True)
class Classification:
    """Top-1 and top-5 accuracy from 0 to 1; top-5 where there are more than five classes.

    Classes that are equally likely count as in random order, in the mean over all orders.

    :param data: Images with the numbers of the classes that the model's head has: ``{use: image, samples: null}``.
    :param batch_size: Images at a time.
    """

    data: Dataset
    batch_size: int = 32

    wants: ClassVar = Classifies

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        reader: Any = adapter
        check_ability("classification", Classifies, reader, model)

        def classes_of(batch: list[Sample]) -> Float[Tensor, "images classes"]:
            with torch.no_grad():
                logits: Tensor = reader.logits(model, batch)
            self._check(logits.shape[1])
            return logits

        return accuracies("classification", self.data(adapter, model), self.batch_size, classes_of)

    def _check(self, known: int) -> None:
        """Of folders that are some of the model's classes, the numbers are others than the model's."""
        names = getattr(self.data, "classes", None)
        if names is not None and len(names) != known:
            raise DataError(
                f"classification: the data has {len(names)} classes ({', '.join(names[:3])} …), and the model's head "
                f"{known}: their numbers mean something else. Give the data the names of all classes of the model."
            )
