"""What a run came to, as data, as a table that compares runs, and as a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ecoflap.core.environment import machine, versions
from ecoflap.core.figures import NOTHING, bytes_text, measure_text, time_text
from ecoflap.core.files import write_whole
from ecoflap.core.plan import Plan
from ecoflap.core.recipe_model import Recipe
from ecoflap.core.report_page import page
from ecoflap.core.run import RunFolder, read_json, require_finished


def make_report(
    folder: RunFolder,
    recipe: Recipe,
    plan: Plan,
    parameters: int,
    nonzeros: int,
    measures: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    device: str,
) -> dict[str, Any]:
    """Everything that is known of a finished run; ``report.json`` holds it.

    :param parameters: Of the whole model.
    :param nonzeros: Among the planned layers' weights.
    :param sizes: Bytes of the weights in ``model/`` and in each export.
    """
    planned = plan.dump()
    return {
        "version": 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe.plain(),
        "parameters": parameters,
        "prunable": plan.size,
        "kept": plan.keep,
        "kept_zeros": plan.keep - nonzeros,
        "sparsity": planned["sparsity"],
        "towers": planned["towers"],
        "groups": planned["groups"],
        "measures": measures,
        "bytes": sizes,
        "stages": folder.stages(),
        "warnings": folder.warnings(),
        "machine": machine(device),
        "versions": versions(),
    }


def write_report(folder: RunFolder, report: Mapping[str, Any]) -> None:
    """``report.html`` first: a run with a ``report.json`` is finished."""
    write_whole(folder.path / "report.html", page(folder.path.name, report))
    write_whole(folder.report, json.dumps(report, indent=1, allow_nan=False))


def method_of(report: Mapping[str, Any]) -> str:
    """``zeroth_order → ecoflap → wanda``, as far as the run used them."""
    recipe = report["recipe"]
    scored = any(group["score"] is not None for group in report["groups"].values())
    names = [recipe["score"]["use"]] if scored else []
    return " → ".join([*names, recipe["allocate"]["use"], recipe["prune"]["use"]])


Row = dict[str, str]


def comparison(paths: Sequence[Path]) -> list[Row]:
    """A row a run, with the same columns in each.

    :raises EcoflapError: For a path that is no finished run.
    """
    reports = [read_json(require_finished(path).report) for path in paths]
    metrics = list(dict.fromkeys(name for report in reports for name in report["measures"]["pruned"]))
    exports = list(dict.fromkeys(name for report in reports for name in report["bytes"] if name != "model"))
    return [_row(name, report, metrics, exports) for name, report in zip(_distinct(paths), reports, strict=True)]


def _distinct(paths: Sequence[Path]) -> list[str]:
    """The folders' names; their paths where two are called the same."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _row(run: str, report: Mapping[str, Any], metrics: Sequence[str], exports: Sequence[str]) -> Row:
    row = {"run": run, "method": method_of(report), "sparsity": f"{100 * report['sparsity']:.2f} %"}
    for name in metrics:
        for stage in ("dense", "pruned"):
            row[f"{name} {stage}"] = measure_text(report["measures"][stage].get(name))
    row["time"] = time_text(sum(stage["seconds"] for stage in report["stages"]))
    row["peak memory"] = bytes_text(max(stage["peak_memory"] for stage in report["stages"]))
    model = report["bytes"]["model"]
    row["model"] = bytes_text(model)
    for name in exports:
        size = report["bytes"].get(name)
        row[name] = NOTHING if size is None else bytes_text(size) + ratio_text(size, model)
    return row


def ratio_text(size: int, model: int) -> str:
    return f" ({size / model:.2f}×)" if model else ""


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


TEXTS = ("run", "method")
"""Columns that hold no numbers."""


def _line(cells: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    padded = (
        f"{cell:{'<' if is_left else '>'}{width}}" for cell, width, is_left in zip(cells, widths, left, strict=True)
    )
    return f"| {' | '.join(padded)} |"
