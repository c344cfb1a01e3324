"""The scorer ``weight_metric`` gives each weight a number, which is that of a metric computed of the dense model.

    S_ij = the metric of the weight,   0 where the weight is 0

The allocator ``threshold`` compares these numbers across layers, for which they have to be of one scale. With a pruner
that keeps the same metric's largest by layer, as ``by_metric`` does, that is global pruning by it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ecoflap.core.bits import is_nonzero
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import MetricOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import LossStatistic, Metric
from ecoflap.core.contracts.records import Aggregate, ScoreKind, Statistics
from ecoflap.core.errors import refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.core.pruning.metric_answer import numbers_of
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block
from ecoflap.plugins.scorers.shared.held import held_with_statistics


@dataclass(frozen=True)
class WeightMetric:
    """Score single weights by a metric. All blocks are dense when it looks at their inputs.

    An expert that no token reached has zeros by a metric that looks at data: what would stand in for its inputs is of
    another scale than the others'.

    :param metric: What is computed of each weight.
    :param samples: How many calibration samples it looks at, where the metric looks at any.
    """

    metric: Metric
    samples: int = 128

    gives: ClassVar[ScoreKind] = "weights"
    aggregate: ClassVar[Aggregate] = "per_parameter"
    # In which the pruner computes the same metric: what a threshold leaves of a layer is what that one keeps.
    dtype: ClassVar[Literal["model"]] = "model"

    def __post_init__(self) -> None:
        refuse_below_one("samples", self.samples)

    @property
    def data(self) -> bool:
        """Say whether the metric looks at data."""
        return bool(self._needs)

    @property
    def shares(self) -> bool:
        """Say whether processes share the work: each would hold sums of the whole loss' gradient of all batches."""
        return self.data and not self._of_loss

    def problems(self, context: PlanContext) -> Iterable[str]:
        """Say what the metric has against this use."""
        return options_of(MetricOptions, self.metric).problems(context)

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count two runs of every block for each batch, and four forwards' time for each of a gradient."""
        return 2 * batches * self._of_inputs + 4 * batches * bool(self._of_loss)

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count the statistics of a block, and of a layer what the metric holds and gives."""
        metric = options_of(MetricOptions, self.metric)

        def of_layer(outputs: int, inputs: int) -> int:
            held: int = metric.held_numbers(outputs, inputs)
            return held + 2 * outputs * inputs  # one more where what is pruned is set to 0

        return held_with_statistics(anatomy, self._needs, of_layer)

    def recorded_numbers(self, anatomy: Anatomy) -> int:
        """Count the sums of the loss' gradient, which are a number for each weight."""
        return sum(layer.size for _, layer in anatomy.layers()) * len(self._of_loss)

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        if self._of_loss:
            replay.keep_loss_gradients(layers, self._of_loss)
        for index, _, mine in block_by_block(replay, layers, runs=self._of_inputs):
            seen = replay.run(index, self._needs, mine) if self._needs else {}
            for layer in mine:
                with replay.placement.held([layer.parameter]):
                    numbers = self._numbers(layer.weight.data, seen.get(layer.name, Statistics()))
                yield layer.name, numbers

    def _numbers(self, weight: Float[Tensor, "out in"], seen: Statistics) -> Float[Tensor, "out in"]:
        if not seen.is_fed:
            return torch.zeros_like(weight, dtype=torch.float32)
        return numbers_of(self.metric, weight, seen).masked_fill(~is_nonzero(weight), 0.0)

    @property
    def _needs(self) -> tuple[type[Any], ...]:
        return options_of(MetricOptions, self.metric).needs

    @property
    def _of_inputs(self) -> bool:
        """Say whether the metric looks at what blocks are fed, and not at the loss' gradient alone."""
        return len(self._needs) > len(self._of_loss)

    @property
    def _of_loss(self) -> tuple[type[Any], ...]:
        return tuple(need for need in self._needs if issubclass(need, LossStatistic))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[WeightMetric]]:
    return {"weight_metric": WeightMetric}
