"""Make vision-language models smaller without retraining.

Public names are imported when first used, so that ``ecoflap --help`` does not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoflap.core.anatomy import Anatomy as Anatomy
    from ecoflap.core.anatomy import Block as Block
    from ecoflap.core.anatomy import Layer as Layer
    from ecoflap.core.anatomy import Source as Source
    from ecoflap.core.anatomy import Tower as Tower
    from ecoflap.core.budget import Group as Group
    from ecoflap.core.budget import Keep as Keep
    from ecoflap.core.budget import Pattern as Pattern
    from ecoflap.core.budget import select as select
    from ecoflap.core.check_adapter import check_adapter as check_adapter
    from ecoflap.core.errors import EcoflapError as EcoflapError
    from ecoflap.core.export_run import export_run as export_run
    from ecoflap.core.hookspecs import hookimpl as hookimpl
    from ecoflap.core.load_model import load_model as load_model
    from ecoflap.core.packed import load_packed as load_packed
    from ecoflap.core.parts import Adapter as Adapter
    from ecoflap.core.parts import Allocator as Allocator
    from ecoflap.core.parts import Check as Check
    from ecoflap.core.parts import Dataset as Dataset
    from ecoflap.core.parts import Estimate as Estimate
    from ecoflap.core.parts import Evaluator as Evaluator
    from ecoflap.core.parts import Exported as Exported
    from ecoflap.core.parts import Exporter as Exporter
    from ecoflap.core.parts import Measure as Measure
    from ecoflap.core.parts import Pruned as Pruned
    from ecoflap.core.parts import Pruner as Pruner
    from ecoflap.core.parts import Sample as Sample
    from ecoflap.core.parts import Scorer as Scorer
    from ecoflap.core.parts import Statistic as Statistic
    from ecoflap.core.parts import StoredTensor as StoredTensor
    from ecoflap.core.parts import View as View
    from ecoflap.core.pipeline import Run as Run
    from ecoflap.core.pipeline import run as run
    from ecoflap.core.registry import load_registry as load_registry
    from ecoflap.core.replay import Replay as Replay
    from ecoflap.core.statistics import ColumnNorm as ColumnNorm
    from ecoflap.core.statistics import Gram as Gram
    from ecoflap.core.sweep import sweep as sweep

_HOME = {
    "anatomy": ("Anatomy", "Block", "Layer", "Source", "Tower"),
    "budget": ("Group", "Keep", "Pattern", "select"),
    "check_adapter": ("check_adapter",),
    "errors": ("EcoflapError",),
    "export_run": ("export_run",),
    "hookspecs": ("hookimpl",),
    "load_model": ("load_model",),
    "packed": ("load_packed",),
    "parts": (
        "Adapter", "Allocator", "Check", "Dataset", "Estimate", "Evaluator", "Exported", "Exporter", "Measure",
        "Pruned", "Pruner", "Sample", "Scorer", "Statistic", "StoredTensor", "View",
    ),
    "pipeline": ("Run", "run"),
    "registry": ("load_registry",),
    "replay": ("Replay",),
    "statistics": ("ColumnNorm", "Gram"),
    "sweep": ("sweep",),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)
__version__ = version("ecoflap")


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'ecoflap' has no attribute {name!r}")
    return getattr(import_module(f"ecoflap.core.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
