"""What a run came to, as data, as a table that compares runs, and as a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import log10
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.anatomy import Anatomy
from ecoflap.core.environment import machine, versions
from ecoflap.core.files import read_lines, write_whole
from ecoflap.core.parts import Adapter
from ecoflap.core.plan import Plan
from ecoflap.core.recipe_model import Recipe
from ecoflap.core.report_page import page
from ecoflap.core.run import RunFolder, read_json, require_finished


def make_report(
    folder: RunFolder,
    recipe: Recipe,
    plan: Plan,
    model: nn.Module,
    adapter: Adapter,
    device: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Everything that is known of a finished run; ``report.json`` holds it."""
    planned = plan.dump()
    return {
        "version": 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe.plain(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "prunable": plan.size,
        "kept": plan.keep,
        "kept_zeros": plan.keep - _nonzeros(plan, model, adapter),
        "sparsity": planned["sparsity"],
        "towers": planned["towers"],
        "groups": planned["groups"],
        "measures": _measures(folder),
        "bytes": _sizes(folder),
        "stages": folder.stages(),
        "warnings": list(warnings),
        "machine": machine(device),
        "versions": versions(),
    }


def write_report(folder: RunFolder, report: Mapping[str, Any]) -> None:
    """``report.html`` first: a run with a ``report.json`` is finished."""
    write_whole(folder.path / "report.html", page(folder.path.name, report))
    write_whole(folder.report, json.dumps(report, indent=1))


def _nonzeros(plan: Plan, model: nn.Module, adapter: Adapter) -> int:
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    weights = (layer.weight.data for _, layer in anatomy.layers() if layer.name in plan.layers)
    return sum(int(weight.count_nonzero()) for weight in weights)


def _measures(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """By stage and name. A name that two evaluators use is numbered."""
    found: dict[str, dict[str, Any]] = {"dense": {}, "pruned": {}}
    for line in read_lines(folder.evaluations):
        measures = found[line["stage"]]
        for name, measure in line["measures"].items():
            same = sum(known == name or known.startswith(f"{name} (") for known in measures)
            measures[f"{name} ({same + 1})" if same else name] = measure
    return found


def _sizes(folder: RunFolder) -> dict[str, int]:
    """Bytes of the weights in ``model/`` and of each export's files."""
    sizes = {"model": sum(file.stat().st_size for file in folder.model.glob("*.safetensors"))}
    for record in sorted(folder.exports.glob("*.json")):
        files = read_json(record)["files"]
        weights = [
            entry["bytes"] for name, entry in files.items() if not name.endswith((".json", ".jinja", ".txt", ".model"))
        ]
        sizes[record.stem] = sum(weights)
    return sizes


def method_of(report: Mapping[str, Any]) -> str:
    """``zeroth_order → ecoflap → wanda``, as far as the run used them."""
    recipe = report["recipe"]
    scored = recipe["allocate"]["use"] not in ("uniform", "from_file") and recipe["score"]
    names = [recipe["score"]["use"]] if scored else []
    return " → ".join([*names, recipe["allocate"]["use"], recipe["prune"]["use"]])


Row = dict[str, str]


def comparison(paths: Sequence[Path]) -> list[Row]:
    """A row a run, with the same columns in each.

    :raises EcoflapError: For a path that is no finished run.
    """
    reports = [(path, read_json(require_finished(path).report)) for path in paths]
    metrics = list(dict.fromkeys(name for _, report in reports for name in report["measures"]["pruned"]))
    exports = list(dict.fromkeys(name for _, report in reports for name in report["bytes"] if name != "model"))
    return [_row(path, report, metrics, exports) for path, report in reports]


def _row(path: Path, report: Mapping[str, Any], metrics: Sequence[str], exports: Sequence[str]) -> Row:
    row = {"run": path.name, "method": method_of(report), "sparsity": f"{100 * report['sparsity']:.2f} %"}
    for name in metrics:
        for stage in ("dense", "pruned"):
            row[f"{name} {stage}"] = measure_text(report["measures"][stage].get(name))
    stages = report["stages"]
    row["minutes"] = f"{sum(stage['seconds'] for stage in stages) / 60:.1f}"
    row["peak memory"] = bytes_text(max(stage["peak_memory"] for stage in stages))
    dense = report["bytes"]["model"]
    row["model"] = bytes_text(dense)
    for name in exports:
        size = report["bytes"].get(name)
        row[name] = f"{bytes_text(size)} ({size / dense:.2f}×)" if size else "–"
    return row


def measure_text(measure: Mapping[str, Any] | None) -> str:
    return f"{measure['value']:.4g} ± {measure['standard_error']:.2g}" if measure else "–"


def bytes_text(count: float) -> str:
    """In units of a thousand, as disks and downloads are counted."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(log10(count) / 3), 4)
    return f"{count / 1000**power:.1f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def comparison_files(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of Markdown."""
    columns = list(rows[0])
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(row[column] for column in columns) + " |"
