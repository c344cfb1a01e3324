"""Numbers as tables and pages show them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log10
from statistics import fmean
from typing import Any

NOTHING = "–"


def mean(values: Sequence[int | float]) -> float:
    """Of equal numbers their own value, without rounding."""
    return float(values[0]) if min(values) == max(values) else fmean(values)


def measure_text(measure: Mapping[str, Any] | None) -> str:
    """``40.66 ± 2.6``; without an error where there is none."""
    if measure is None:
        return NOTHING
    error = measure["standard_error"]
    return f"{measure['value']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def bytes_text(count: int | float) -> str:
    """In units of a thousand, as disks and downloads are counted."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(log10(count) / 3 + 1e-9), 4)
    return f"{count / 1000**power:.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def ratio_text(size: int | float, model: int | float) -> str:
    """`` (0.66×)``; nothing of a model that has no bytes."""
    return f" ({size / model:.2f}×)" if model else ""


def time_text(seconds: int | float) -> str:
    """``4.2 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def export_sizes(manifest: Mapping[str, Any]) -> list[int | None]:
    """Of an export: the model in memory, its weights deflated, the same files dense, and as they are stored."""
    sizes = manifest["bytes"]
    return [sizes["model"], sizes["deflated"], sizes["dense"], sizes["stored"]]


def forms(manifest: Mapping[str, Any]) -> str:
    """``182 bitmask, 2 dense``: how an export stores pruned weights."""
    counts = Counter(tensor["form"] for tensor in manifest["tensors"])
    return ", ".join(f"{count} {form}" for form, count in counts.most_common())
