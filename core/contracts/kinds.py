"""The kinds of parts: what each must be, and what it may have besides."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ecoflap.core.contracts import options, protocols
from ecoflap.core.contracts.adapter_options import AdapterOptions


class Kind(NamedTuple):
    """One kind of part.

    :param protocol: What a part of the kind must be.
    :param options: What it may have besides, with defaults.
    :param key: The key of a recipe that one is written after; empty for one that is written inside of other parts.
    """

    protocol: type[Any]
    options: type[options.PartOptions]
    key: str


KINDS: Mapping[str, Kind] = {
    "scorer": Kind(protocols.Scorer, options.ScorerOptions, "score"),
    "allocator": Kind(protocols.Allocator, options.AllocatorOptions, "allocate"),
    "pruner": Kind(protocols.Pruner, options.PrunerOptions, "prune"),
    "refiner": Kind(protocols.Refiner, options.RefinerOptions, "refine"),
    "metric": Kind(protocols.Metric, options.MetricOptions, ""),
    "adapter": Kind(protocols.Adapter, AdapterOptions, "model.adapter"),
    "exporter": Kind(protocols.Exporter, options.ExporterOptions, "export"),
    "dataset": Kind(protocols.Dataset, options.DatasetOptions, "calibration"),
    "evaluator": Kind(protocols.Evaluator, options.EvaluatorOptions, "evaluate"),
}
"""By the name that error messages, ``ecoflap list`` and registry files use."""
