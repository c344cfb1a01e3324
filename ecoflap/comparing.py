"""Finished runs side by side from Python; docs/compare.md shows how."""

from ecoflap.core.compare.comparison import compared
from ecoflap.core.compare.page import write_comparison
from ecoflap.core.sweep.sweep import planned_sweep

__all__ = ["compared", "planned_sweep", "write_comparison"]
