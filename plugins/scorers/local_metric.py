"""The scorer ``local_metric`` scores a layer by the mean of a metric over its weights; that is Wanda's by default.

    S_l = mean_ij of the metric of the weight,   which is |W_ij|·‖X_j‖₂ by default

It looks at no loss. Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language
Models, ICLR 2024, divide a budget by it for comparison, with the metric of Wanda or of SparseGPT, and find that worse
than no division. Their code takes the metric from a run that prunes uniformly, where blocks see pruned ones before
them; here all are dense.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Metric
from ecoflap.core.contracts.records import Aggregate
from ecoflap.core.errors import refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.plugins.metrics.wanda import Wanda
from ecoflap.plugins.scorers.weight_metric import WeightMetric


@dataclass(frozen=True)
class LocalMetric:
    """Score layers by the mean of a metric of their weights, which says nothing of the whole model. It is a baseline.

    :param metric: What is computed of each weight.
    :param samples: How many calibration samples it looks at, where the metric looks at any.
    """

    metric: Metric = field(default_factory=Wanda)
    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"

    def __post_init__(self) -> None:
        refuse_below_one("samples", self.samples)

    @property
    def data(self) -> bool:
        """Say whether the metric looks at data."""
        return self._of_weights.data

    @property
    def shares(self) -> bool:
        """Say whether processes share the work."""
        return self._of_weights.shares

    def problems(self, context: PlanContext) -> Iterable[str]:
        """Say what the metric has against this use."""
        return self._of_weights.problems(context)

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count those that the metric of all weights takes."""
        return self._of_weights.forwards(anatomy, batches)

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count what the metric of all weights takes."""
        return self._of_weights.held_numbers(anatomy)

    def recorded_numbers(self, anatomy: Anatomy) -> int:
        """Count the sums of the loss' gradient, where the metric looks at that."""
        return self._of_weights.recorded_numbers(anatomy)

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for name, numbers in self._of_weights(replay, layers):
            yield name, float(numbers.float().mean())

    @property
    def _of_weights(self) -> WeightMetric:
        return WeightMetric(self.metric, self.samples)


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[LocalMetric]]:
    return {"local_metric": LocalMetric}
