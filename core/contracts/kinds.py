"""The kinds of parts: what each must be, and what it may have besides."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ecoflap.core.contracts import options, protocols


class Kind(NamedTuple):
    """One kind of part.

    :param protocol: What a part of the kind must be.
    :param options: What it may have besides, with defaults.
    """

    protocol: type[Any]
    options: type[options.PartOptions]


KINDS: Mapping[str, Kind] = {
    "scorer": Kind(protocols.Scorer, options.ScorerOptions),
    "allocator": Kind(protocols.Allocator, options.AllocatorOptions),
    "pruner": Kind(protocols.Pruner, options.PrunerOptions),
    "refiner": Kind(protocols.Refiner, options.RefinerOptions),
    "metric": Kind(protocols.Metric, options.MetricOptions),
    "adapter": Kind(protocols.Adapter, options.AdapterOptions),
    "exporter": Kind(protocols.Exporter, options.ExporterOptions),
    "dataset": Kind(protocols.Dataset, options.DatasetOptions),
    "evaluator": Kind(protocols.Evaluator, options.EvaluatorOptions),
}
"""By the name that error messages, ``ecoflap list`` and registry files use."""
