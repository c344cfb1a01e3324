"""Write a comparison as plain values: its ``report.json`` and ``report.csv``."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from ecoflap.core.compare.comparison import ComparedRun, Comparison, DenseMeasure, RunGroup, spread
from ecoflap.core.compare.differences import what_differs
from ecoflap.core.compare.table import measure_title
from ecoflap.core.record.report import RecordedMeasure
from ecoflap.core.text.numbers import mean


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return what ``report.json`` of a comparison holds."""
    return {
        "version": 1,
        "runs": [_run_data(run) for run in comparison.runs],
        "dense": {name: _dense_data(comparison.dense(name)) for name in comparison.metrics},
        "groups": [data for group in comparison.groups for data in _group_data(group, comparison.metrics)],
        "differs": what_differs(comparison),
        "unfinished": list(map(str, comparison.unfinished)),
    }


def _run_data(run: ComparedRun) -> dict[str, Any]:
    report = run.report
    measures = report.measures.model_dump()
    return {
        "folder": str(run.folder),
        "method": run.method,
        "seed": run.seed,
        "sparsity": run.sparsity,
        "asked": report.recipe.sparsity,
        "measures": measures["pruned"],
        "dense": measures["dense"],
        "towers": report.towers,
        "blocks": report.sparsities_by_tower(),
        "bytes": report.bytes,
        "stages": [stage.model_dump() for stage in report.stages],
        "seconds": run.seconds,
        "peak_memory": run.peak_memory,
        "taken_over": list(run.taken_over),
    }


def _dense_data(dense: DenseMeasure | None) -> dict[str, Any] | None:
    if dense is None:
        return None
    return {**dense.measure.model_dump(), "value": dense.mean, "min": dense.lowest, "max": dense.highest}


def _group_data(group: RunGroup, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    for metric in metrics:
        values = group.values(metric)
        if values:
            yield {
                "method": group.method,
                "sparsity": group.sparsity,
                "metric": metric,
                "n_seeds": len(values),
                "mean": mean(values),
                "sd": spread(values),
                "min": min(values),
                "max": max(values),
            }


def as_csv(comparison: Comparison) -> str:
    """Return a line for each run, in plain numbers: shares, seconds, bytes."""
    lines = [_line(run, comparison) for run in comparison.runs]
    text = StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(run: ComparedRun, comparison: Comparison) -> Mapping[str, Any]:
    about: dict[str, Any] = {"run": run.name, "method": run.method, "sparsity": run.sparsity, "seed": run.seed}
    costs: dict[str, Any] = {f"sparsity of {tower}": run.report.towers.get(tower) for tower in comparison.towers}
    costs |= {"seconds": round(run.seconds, 3), "taken over": ", ".join(run.taken_over), "peak memory": run.peak_memory}
    costs |= {f"bytes of {name}": run.report.bytes.get(name) for name in ("model", *comparison.exports)}
    measured: dict[str, Any] = {}
    for name in comparison.metrics:
        cells = _measure_cells(name, run.dense.get(name), run.pruned.get(name))
        measured |= {measure_title(title, (*about, *costs)): cell for title, cell in cells.items()}
    return about | measured | costs


def _measure_cells(name: str, dense: RecordedMeasure | None, pruned: RecordedMeasure | None) -> dict[str, Any]:
    return {
        f"{name} dense": dense and dense.value,
        name: pruned and pruned.value,
        f"{name} standard error": pruned and pruned.standard_error,
        f"{name} n": pruned and pruned.n,
    }
