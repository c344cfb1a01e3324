"""The loss itself, on data that the model was not calibrated on: of every family, and the cheapest measure there is."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.forward.placement import device_of
from ecoflap.core.run.calibration import on_device
from ecoflap.plugins.evaluators.perplexity import mean_of_means
from ecoflap.plugins.evaluators.shared.comparing import batches


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Loss"]]:
    return {"loss": Loss}


@dataclass(frozen=True)
class Loss:
    """The mean of the adapter's loss over batches, each counted by its samples: the same number scores are made from.

    Within a batch it is over what the family predicts: tokens, or pairs. So the value belongs to its ``batch_size``,
    above all for a contrastive loss, which needs at least 2. A last sample that would be alone joins the batch before.
    The standard error takes batches as independent.

    :param data: What the model could be calibrated on, other samples of it.
    :param batch_size: Samples that are looked at together.
    """

    data: Dataset
    batch_size: int = 8

    by_loss: ClassVar[bool] = True
    """A contrastive model's adapter asks for pairs in every batch."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; at least 1 is needed")

    def __call__(self, model: nn.Module, adapter: Adapter) -> Mapping[str, Measure]:
        losses: list[float] = []
        sizes: list[int] = []
        device = str(device_of(model))
        for number, batch in enumerate(_together(self.data(adapter, model), self.batch_size)):
            with torch.no_grad():
                losses.append(float(adapter.loss(model, on_device(adapter.collate(batch), device))))
            sizes.append(len(batch))
            if not math.isfinite(losses[-1]):
                raise ModelError(f"loss: that of batch {number} is {losses[-1]}; the model is broken.")
        if not losses:
            raise DataError("loss: its data holds no sample.")
        value, error = mean_of_means(losses, sizes)
        return {"loss": Measure(value, sum(sizes), error, "samples", larger_is_better=False)}


def _together(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Batches of which the last is not of one sample, unless all are."""
    before: list[Sample] = []
    for batch in batches(samples, size):
        if len(batch) == 1 < size and before:
            batch = before + batch
        elif before:
            yield before
        before = batch
    if before:
        yield before
