"""Write numbers as tables and pages show them."""

from collections.abc import Sequence
from math import log10
from statistics import fmean

NO_VALUE = "–"
"""Stands where there is no number."""


def mean(values: Sequence[int | float]) -> float:
    """Return the mean; of equal numbers their own value, without rounding."""
    return float(values[0]) if min(values) == max(values) else fmean(values)


def with_error(value: float, standard_error: float | None) -> str:
    """Return ``40.66 ± 2.6``, or the value alone where there is no error."""
    return f"{value:.4g}" + ("" if standard_error is None else f" ± {standard_error:.2g}")


def bytes_text(count: int | float) -> str:
    """Return a size in units of a thousand, as disks and downloads are counted: ``2.5 GB``."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(log10(count) / 3 + 1e-9), 4)  # the logarithm of a power of ten may fall just short of it
    return f"{count / 1000**power:.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def ratio_text(size: int | float, dense: int | float) -> str:
    """Return how large something is beside what it is dense, as `` (0.66×)``; nothing beside what has no bytes."""
    return f" ({size / dense:.2f}×)" if dense else ""


def time_text(seconds: int | float) -> str:
    """Return a time as ``4.2 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
