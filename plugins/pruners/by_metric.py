"""The pruner ``by_metric`` keeps the weights with the largest metric, whatever the metric is.

A new criterion is one formula: a part of kind ``metric``, as those in ``plugins/metrics``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ecoflap.core.budget.counts import Budget
from ecoflap.core.budget.select import Compare, kept_only, select, zeros_first
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import MetricOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Metric, Pruner
from ecoflap.core.contracts.records import LayerPlace, Pruned, Statistics
from ecoflap.core.pruning.metric_answer import numbers_of


@dataclass(frozen=True)
class ByMetric:
    """Keep the weights with the largest metric. No weight that is kept changes.

    :param metric: What is compared.
    :param compare: Whom a weight competes with: those of its output ``row``, or all of its ``layer``.
    """

    metric: Metric
    compare: Compare = "row"
    changes_weights: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[type[Any], ...]:
        return options_of(MetricOptions, self.metric).needs

    def problems(self, context: PlanContext) -> Iterable[str]:
        return options_of(MetricOptions, self.metric).problems(context)

    def held_numbers(self, outputs: int, inputs: int) -> int:
        """Count what the metric holds, the numbers that it gives, as they are and compared, and the weights kept."""
        held: int = options_of(MetricOptions, self.metric).held_numbers(outputs, inputs)
        return held + 3 * outputs * inputs

    def __call__(self, weight: Float[Tensor, "out in"], seen: Statistics, budget: Budget, layer: LayerPlace) -> Pruned:
        weight = weight.detach()
        mask = select(zeros_first(numbers_of(self.metric, weight, seen), weight), budget, self.compare)
        return Pruned(mask, kept_only(weight, mask))


@hookimpl
def ecoflap_register_pruners() -> Mapping[str, Callable[..., Pruner]]:
    return {"by_metric": ByMetric}
