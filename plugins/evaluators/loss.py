"""The evaluator ``loss`` gives the adapter's own loss, the cheapest measure there is, on data of any family.

loss = Σ over batches of samples · loss / Σ over batches of samples
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Adapter, Dataset, Note
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, refuse_below_one
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.evaluators.shared.batches import batches
from ecoflap.plugins.evaluators.shared.means import mean_of_means
from ecoflap.plugins.evaluators.shared.model_calls import shared_losses


@hookimpl
def ecoflap_register_evaluators() -> Mapping[str, type["Loss"]]:
    return {"loss": Loss}


@dataclass(frozen=True)
class Loss:
    """Measure the mean of the adapter's loss over batches, each counted by its samples. Scores are made of this loss.

    Within a batch it is over what the family predicts: tokens, or pairs. So the value belongs to its ``batch_size``,
    above all for a contrastive loss, which needs at least 2. A last sample that would be alone joins the batch before.
    The standard error takes batches as independent.

    :param data: What the model could be calibrated on, other samples of it.
    :param batch_size: How many samples are looked at together.
    """

    data: Dataset
    batch_size: int = 8

    def __post_init__(self) -> None:
        refuse_below_one("batch_size", self.batch_size)

    @property
    def loss_batch_size(self) -> int:
        """Say how many samples the adapter's loss is given at a time."""
        return self.batch_size

    def __call__(self, model: nn.Module, adapter: Adapter, note: Note) -> Mapping[str, Measure]:
        return self.dealt(model, adapter, note, ALONE)

    def dealt(self, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Mapping[str, Measure]:
        """Measure as the call does, each process some of the batches."""
        batched = _none_alone(self.data(adapter, model, note), self.batch_size)
        found = shared_losses("loss", model, adapter, batched, lambda one: len(one.samples), ranks)
        if not found:
            raise DataError("loss: its data holds no sample.")
        values, sizes = zip(*found, strict=True)
        value, error = mean_of_means(values, sizes)
        return {"loss": Measure(value, sum(sizes), error, "samples", larger_is_better=False)}


def _none_alone(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield batches of which the last is not of one sample, unless all are."""
    before: list[Sample] = []
    for batch in batches(samples, size):
        if len(batch) == 1 < size and before:
            batch = before + batch
        elif before:
            yield before
        before = batch
    if before:
        yield before
