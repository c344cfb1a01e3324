"""Make vision-language models smaller without retraining.

What may be imported is what ``__all__`` names, here and in the modules of :data:`PUBLIC`; all else is private and may
move. Public names of this module are imported when first used, so that ``ecoflap --help`` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoflap.core.budget.counts import Group as Group
    from ecoflap.core.budget.counts import Keep as Keep
    from ecoflap.core.budget.counts import Pattern as Pattern
    from ecoflap.core.budget.curves import Curve as Curve
    from ecoflap.core.budget.select import select as select
    from ecoflap.core.budget.weight_scores import WeightScores as WeightScores
    from ecoflap.core.checking.check_adapter import check_adapter as check_adapter
    from ecoflap.core.contracts.adapter_options import AdapterOptions as AdapterOptions
    from ecoflap.core.contracts.hookspecs import hookimpl as hookimpl
    from ecoflap.core.contracts.options import AllocatorOptions as AllocatorOptions
    from ecoflap.core.contracts.options import DatasetOptions as DatasetOptions
    from ecoflap.core.contracts.options import EvaluatorOptions as EvaluatorOptions
    from ecoflap.core.contracts.options import ExporterOptions as ExporterOptions
    from ecoflap.core.contracts.options import MetricOptions as MetricOptions
    from ecoflap.core.contracts.options import PartOptions as PartOptions
    from ecoflap.core.contracts.options import PrunerOptions as PrunerOptions
    from ecoflap.core.contracts.options import RefinerOptions as RefinerOptions
    from ecoflap.core.contracts.options import ScorerOptions as ScorerOptions
    from ecoflap.core.contracts.plan_context import PlanContext as PlanContext
    from ecoflap.core.contracts.protocols import Adapter as Adapter
    from ecoflap.core.contracts.protocols import Allocator as Allocator
    from ecoflap.core.contracts.protocols import ComparingEvaluator as ComparingEvaluator
    from ecoflap.core.contracts.protocols import Dataset as Dataset
    from ecoflap.core.contracts.protocols import Evaluator as Evaluator
    from ecoflap.core.contracts.protocols import Exporter as Exporter
    from ecoflap.core.contracts.protocols import Metric as Metric
    from ecoflap.core.contracts.protocols import PrunedModel as PrunedModel
    from ecoflap.core.contracts.protocols import Pruner as Pruner
    from ecoflap.core.contracts.protocols import Refiner as Refiner
    from ecoflap.core.contracts.protocols import Scorer as Scorer
    from ecoflap.core.contracts.protocols import Statistic as Statistic
    from ecoflap.core.contracts.records import Answered as Answered
    from ecoflap.core.contracts.records import Check as Check
    from ecoflap.core.contracts.records import Estimate as Estimate
    from ecoflap.core.contracts.records import Exported as Exported
    from ecoflap.core.contracts.records import LayerPlace as LayerPlace
    from ecoflap.core.contracts.records import Meanwhile as Meanwhile
    from ecoflap.core.contracts.records import Measure as Measure
    from ecoflap.core.contracts.records import Mended as Mended
    from ecoflap.core.contracts.records import Provenance as Provenance
    from ecoflap.core.contracts.records import Pruned as Pruned
    from ecoflap.core.contracts.records import Sample as Sample
    from ecoflap.core.contracts.records import Statistics as Statistics
    from ecoflap.core.contracts.records import StoredTensor as StoredTensor
    from ecoflap.core.contracts.records import View as View
    from ecoflap.core.contracts.records import ViewSize as ViewSize
    from ecoflap.core.errors import EcoflapError as EcoflapError
    from ecoflap.core.export.export_again import export_run as export_run
    from ecoflap.core.forward.replay import Replay as Replay
    from ecoflap.core.model.anatomy import Anatomy as Anatomy
    from ecoflap.core.model.anatomy import Block as Block
    from ecoflap.core.model.anatomy import Layer as Layer
    from ecoflap.core.model.anatomy import Source as Source
    from ecoflap.core.model.anatomy import Tower as Tower
    from ecoflap.core.packed.group_attention import group_attention as group_attention
    from ecoflap.core.packed.load_model import load_masks as load_masks
    from ecoflap.core.packed.load_model import load_model as load_model
    from ecoflap.core.packed.pack_model import pack_model as pack_model
    from ecoflap.core.packed.packing import Packing as Packing
    from ecoflap.core.packed.read_packed import load_packed as load_packed
    from ecoflap.core.record.report import Report as Report
    from ecoflap.core.record.report import read_report as read_report
    from ecoflap.core.registry.registry import Registry as Registry
    from ecoflap.core.registry.registry import load_registry as load_registry
    from ecoflap.core.run.pipeline import Run as Run
    from ecoflap.core.run.pipeline import run as run
    from ecoflap.core.statistics.column_norm import ColumnNorm as ColumnNorm
    from ecoflap.core.statistics.gram import Gram as Gram
    from ecoflap.core.statistics.loss_gradient import LossGradient as LossGradient
    from ecoflap.core.statistics.regional_gradient import RegionalGradient as RegionalGradient
    from ecoflap.core.sweep.request import SweepRequest as SweepRequest
    from ecoflap.core.sweep.sweep import sweep as sweep

_HOME = {
    "budget.counts": ("Group", "Keep", "Pattern"),
    "budget.curves": ("Curve",),
    "budget.select": ("select",),
    "budget.weight_scores": ("WeightScores",),
    "checking.check_adapter": ("check_adapter",),
    "contracts.adapter_options": ("AdapterOptions",),
    "contracts.hookspecs": ("hookimpl",),
    "contracts.options": (
        "AllocatorOptions", "DatasetOptions", "EvaluatorOptions", "ExporterOptions", "MetricOptions", "PartOptions",
        "PrunerOptions", "RefinerOptions", "ScorerOptions",
    ),
    "contracts.plan_context": ("PlanContext",),
    "contracts.protocols": (
        "Adapter", "Allocator", "ComparingEvaluator", "Dataset", "Evaluator", "Exporter", "Metric", "PrunedModel",
        "Pruner", "Refiner", "Scorer", "Statistic",
    ),
    "contracts.records": (
        "Answered", "Check", "Estimate", "Exported", "LayerPlace", "Meanwhile", "Measure", "Mended", "Provenance",
        "Pruned", "Sample", "Statistics", "StoredTensor", "View", "ViewSize",
    ),
    "errors": ("EcoflapError",),
    "export.export_again": ("export_run",),
    "forward.replay": ("Replay",),
    "model.anatomy": ("Anatomy", "Block", "Layer", "Source", "Tower"),
    "packed.group_attention": ("group_attention",),
    "packed.load_model": ("load_masks", "load_model"),
    "packed.pack_model": ("pack_model",),
    "packed.packing": ("Packing",),
    "packed.read_packed": ("load_packed",),
    "record.report": ("Report", "read_report"),
    "registry.registry": ("Registry", "load_registry"),
    "run.pipeline": ("Run", "run"),
    "statistics.column_norm": ("ColumnNorm",),
    "statistics.gram": ("Gram",),
    "statistics.loss_gradient": ("LossGradient",),
    "statistics.regional_gradient": ("RegionalGradient",),
    "sweep.request": ("SweepRequest",),
    "sweep.sweep": ("sweep",),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

PUBLIC = (
    "ecoflap", "ecoflap.adapting", "ecoflap.comparing", "ecoflap.events", "ecoflap.kernel", "ecoflap.onnx",
    "ecoflap.openvino", "ecoflap.ranks", "ecoflap.refining", "ecoflap.testing", "ecoflap.torchscript",
)  # fmt: skip
"""The public modules: all names; adapters, comparisons, events, products, processes, refiners, runtimes, tests."""

__all__ = sorted(_MODULE)
__version__ = version("ecoflap")


def __getattr__(name: str) -> Any:
    if f"ecoflap.{name}" in PUBLIC:
        return import_module(f"ecoflap.{name}")
    if name not in _MODULE:
        raise AttributeError(f"module 'ecoflap' has no attribute {name!r}")
    return getattr(import_module(f"ecoflap.core.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
