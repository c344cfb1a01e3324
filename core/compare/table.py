"""A comparison as rows of text, for the terminal, for Markdown, and as numbers for a CSV file."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any

from ecoflap.core.compare.comparison import Compared, Comparison, Group, spread, what_differs
from ecoflap.core.text.numbers import NOTHING, bytes_text, mean, measure_text, ratio_text, time_text

Row = dict[str, str]

TEXTS = ("run", "method")
"""Columns that hold no numbers."""


def rows(comparison: Comparison) -> list[Row]:
    """A row a run; with several seeds of anything, a row for all of them together, and one for the dense model."""
    if comparison.has_seeds:
        return [_dense_row(comparison), *(_group_row(group, comparison) for group in comparison.groups)]
    return run_rows(comparison)


def run_rows(comparison: Comparison) -> list[Row]:
    """A row a run, with the same columns in each."""
    return [_run_row(run, comparison) for run in comparison.runs]


def _run_row(run: Compared, comparison: Comparison) -> Row:
    row = {"run": run.name, "method": run.method, "sparsity": _percent(run.sparsity)}
    if comparison.has_seeds:
        row["seed"] = str(run.seed)
    for name in comparison.metrics:
        for stage in ("dense", "pruned"):
            row[f"{name} {stage}"] = measure_text(run.measures(stage).get(name))
    return row | _costs([run], comparison)


def _dense_row(comparison: Comparison) -> Row:
    row = {"method": "dense", "sparsity": _percent(0.0), "seeds": NOTHING}
    for name in comparison.metrics:
        measure = comparison.dense(name)
        row[name] = NOTHING if measure is None else _between(measure["min"], measure["max"])
    sizes = {run.report["bytes"]["model"] for run in comparison.runs}
    rest = dict.fromkeys(_costs(comparison.runs, comparison), NOTHING)
    return row | rest | {"model": bytes_text(sizes.pop()) if len(sizes) == 1 else NOTHING}


def _between(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _group_row(group: Group, comparison: Comparison) -> Row:
    row = {"method": group.method, "sparsity": _percent(group.sparsity), "seeds": str(len(group.runs))}
    for name in comparison.metrics:
        values = group.values(name)
        error = spread(values)
        told = f"{mean(values):.4g}" if values else NOTHING
        row[name] = told + ("" if error is None else f" ± {error:.2g}")
    return row | _costs(group.runs, comparison)


def _costs(runs: Sequence[Compared], comparison: Comparison) -> Row:
    """Mean time, the most memory, and bytes, which seeds do not change by much."""
    row = {
        "time": time_text(mean([run.seconds for run in runs])),
        "peak memory": bytes_text(max(run.peak_memory for run in runs)),
    }
    model = mean([run.report["bytes"]["model"] for run in runs])
    row["model"] = bytes_text(model)
    for name in comparison.exports:
        sizes = [run.report["bytes"][name] for run in runs if name in run.report["bytes"]]
        row[name] = bytes_text(mean(sizes)) + ratio_text(mean(sizes), model) if sizes else NOTHING
    return row


def tower_rows(comparison: Comparison) -> list[Row]:
    """The sparsity of each tower by method, as a mean over seeds; nothing where there is one tower, whose it is."""
    towers = dict.fromkeys(tower for run in comparison.runs for tower in run.report["towers"])
    if len(towers) < 2:
        return []
    return [
        {"method": group.method, "sparsity": _percent(group.sparsity), **{name: _share(group, name) for name in towers}}
        for group in comparison.groups
    ]


def _share(group: Group, tower: str) -> str:
    """Of the runs whose model has the tower."""
    shares = [run.report["towers"][tower] for run in group.runs if tower in run.report["towers"]]
    return _percent(mean(shares)) if shares else NOTHING


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def notes(comparison: Comparison) -> Iterator[str]:
    """What has to be said of the table, and what else differs between the runs."""
    if comparison.metrics:
        seeds = "mean ± standard deviation over seeds" if comparison.has_seeds else "value ± standard error"
        yield f"Measures: {seeds}."
    if any(run.took_over for run in comparison.runs):
        yield "Time and memory are those of a run by itself: what one took over counts as it did where it was computed."
    for key, values in what_differs(comparison).items():
        told = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
        yield f"Differs: {key}: {told}"
    if comparison.unfinished:
        names = ", ".join(path.name for path in comparison.unfinished)
        yield f"Not finished, and left out: {names}"


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as the lines of a Markdown table; numbers to the right."""
    columns = list(rows[0])
    cells = [columns, *([row[column].replace("|", "\\|") for column in columns] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    left = [column in TEXTS for column in columns]
    head, *body = (_line(line, widths, left) for line in cells)
    yield head
    rules = (":" + "-" * (w + 1) if is_left else "-" * (w + 1) + ":" for w, is_left in zip(widths, left, strict=True))
    yield f"|{'|'.join(rules)}|"
    yield from body


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    padded = (
        f"{cell:{'<' if is_left else '>'}{width}}" for cell, width, is_left in zip(cells, widths, left, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def as_csv(comparison: Comparison) -> str:
    """A line a run, in plain numbers: shares, seconds, bytes."""
    lines = [_numbers(run, comparison) for run in comparison.runs]
    text = StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _numbers(run: Compared, comparison: Comparison) -> Mapping[str, Any]:
    row: dict[str, Any] = {"run": run.name, "method": run.method, "sparsity": run.sparsity, "seed": run.seed}
    for name in comparison.metrics:
        dense, pruned = (run.measures(stage).get(name, {}) for stage in ("dense", "pruned"))
        row[f"{name} dense"], row[name] = dense.get("value"), pruned.get("value")
        row[f"{name} standard error"], row[f"{name} n"] = pruned.get("standard_error"), pruned.get("n")
    towers = dict.fromkeys(tower for one in comparison.runs for tower in one.report["towers"])
    row |= {f"sparsity of {tower}": run.report["towers"].get(tower) for tower in towers}
    row["seconds"] = round(sum(stage["seconds"] for stage in run.report["stages"]), 3)
    row |= {"seconds alone": round(run.seconds, 3), "peak memory": run.peak_memory}
    row |= {f"bytes of {name}": run.report["bytes"].get(name) for name in ("model", *comparison.exports)}
    return row
