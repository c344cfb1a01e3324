"""A comparison as one page of HTML, and its files: the page, the data, a table as Markdown and one as CSV."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.compare.comparison import (
    Compared,
    Comparison,
    Group,
    as_data,
    blocks_by_tower,
    told_apart,
    what_differs,
)
from ecoflap.core.compare.table import TEXTS, Row, as_csv, markdown, notes, rows, run_rows
from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.record.report import is_scored
from ecoflap.core.report.charts import Line, Panel, Strip, by_block, by_method, by_sparsity, can_draw, stacked
from ecoflap.core.report.html import document, figures, folded, paragraphs, table
from ecoflap.core.report.run_page import NO_DRAWINGS, better, scored_unit, scores_of
from ecoflap.core.text.numbers import bytes_text as exact_bytes
from ecoflap.core.text.strict_yaml import write_yaml


def write_comparison(comparison: Comparison, folder: Path, title: str) -> Path:
    """``report.json``, ``report.csv``, ``report.md`` and ``report.html``, which is returned."""
    write_whole(folder / "report.json", json.dumps(as_data(comparison), indent=1, allow_nan=False, ensure_ascii=False))
    write_whole(folder / "report.csv", as_csv(comparison))
    told = [*markdown(rows(comparison)), "", *(f"{note}\n" for note in notes(comparison))]
    write_whole(folder / "report.md", "\n".join(told))
    write_whole(folder / "report.html", comparison_page(comparison, title))
    return folder / "report.html"


def comparison_page(comparison: Comparison, title: str) -> str:
    """The whole page."""
    sections = [
        ("Results", _table(rows(comparison)) + paragraphs(notes_of_page(comparison))),
        *([(head, figures(drawings)) for head, drawings in _drawings(comparison)] if can_draw() else []),
        ("Drawings", "" if can_draw() else paragraphs([NO_DRAWINGS])),
        ("What else differs", table(("key", "<value", "<methods"), _differing(comparison))),
        ("Runs", _table(run_rows(comparison)) if comparison.has_seeds else ""),
        ("Recipes", "".join(folded(run.name, write_yaml(run.report["recipe"])) for run in comparison.runs)),
    ]
    return document(title, sections)


def notes_of_page(comparison: Comparison) -> Iterator[str]:
    """What differs has a table of its own there."""
    return (note for note in notes(comparison) if not note.startswith("Differs: "))


def _table(shown: Sequence[Row]) -> str:
    columns = [column if column in TEXTS else f">{column}" for column in shown[0]]
    return table(columns, (list(row.values()) for row in shown))


def _differing(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    for key, values in what_differs(comparison).items():
        for value, methods in values.items():
            yield key, value, ", ".join(methods)


def _drawings(comparison: Comparison) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "Measures against sparsity", [_metric(name, at, comparison) for at, name in enumerate(comparison.metrics)]
    yield "Sparsity by block", list(_by_block(comparison))
    scores = _scores(comparison)
    yield "Scores by block", [scores] if scores else []
    yield "Time and memory", list(_costs(comparison))
    yield "Weights on disk", [_bytes(comparison)] if comparison.exports else []


def _metric(name: str, number: int, comparison: Comparison) -> tuple[str, str]:
    groups = [group for group in comparison.groups if group.values(name)]
    dense = comparison.dense(name)
    level = [] if dense is None else sorted({dense["min"], dense["max"]})
    measure = next(run.measures("pruned")[name] for run in comparison.runs if name in run.measures("pruned"))
    label = f"{name} ({better(measure)})" if better(measure) else name
    lines = _lines(groups, name, with_errors=not comparison.has_seeds)
    seeds = ""
    if any(line.has_spread for line in lines):
        seeds = "Mean over seeds, smallest to largest." if comparison.has_seeds else "With the standard error."
    if len({group.sparsity for group in groups}) == 1:
        return by_method(f"measure{number}", label, lines, level), _at(groups[0].sparsity, seeds)
    return by_sparsity(f"measure{number}", label, lines, level), seeds


def _at(sparsity: float, more: str = "") -> str:
    return f"At {100 * sparsity:.4g} % sparsity. {more}".strip()


def _lines(groups: Iterable[Group], name: str, *, with_errors: bool) -> list[Line]:
    """A line a method.

    :param with_errors: The spread is the measure's standard error instead of that over seeds.
    """
    found: dict[str, dict[float, Sequence[float]]] = {}
    for group in groups:
        found.setdefault(group.method, {})[group.sparsity] = (
            _with_error(group, name) if with_errors else group.values(name)
        )
    return [Line.over(method, points) for method, points in found.items()]


def _with_error(group: Group, name: str) -> list[float]:
    measure = group.runs[0].measures("pruned")[name]
    error = measure["standard_error"] or 0.0
    return [measure["value"] - error, measure["value"], measure["value"] + error]


def _by_block(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """A drawing a sparsity; runs that differ in their pruner alone have one line."""
    sparsities = sorted({group.sparsity for group in comparison.groups})
    for number, sparsity in enumerate(sparsities):
        runs = [run for run in comparison.runs if round(run.sparsity, 6) == sparsity]
        panels = _panels(_allocations(runs), runs, blocks_by_tower)
        yield by_block(f"blocks{number}", [Strip("pruned in %", "block", panels, is_share=True)]), _at(sparsity)


def _allocations(runs: Sequence[Compared]) -> list[str]:
    """What divides the budget: ``zeroth_order → ecoflap``."""
    recipes = [run.report["recipe"] for run in runs]
    bases = [
        f"{recipe['score']['use']} → {recipe['allocate']['use']}"
        if is_scored(run.report)
        else recipe["allocate"]["use"]
        for run, recipe in zip(runs, recipes, strict=True)
    ]
    keys = ("score", "allocate", "towers", "include", "model")
    return told_apart(bases, [_parts(run, keys) for run in runs])


def _parts(run: Compared, keys: Sequence[str]) -> dict[str, Any]:
    scored = is_scored(run.report)
    return {key: run.report["recipe"].get(key) for key in keys if scored or key != "score"}


def _scores(comparison: Comparison) -> tuple[str, str] | None:
    runs = [run for run in comparison.runs if is_scored(run.report)]
    units = list(dict.fromkeys(scored_unit(run.report) for run in runs))
    if not runs:
        return None
    recipes = [_parts(run, ("score", "model", "calibration")) for run in runs]
    labels = told_apart([run.report["recipe"]["score"]["use"] for run in runs], recipes)
    scored = {run.name: {n: g for n, g in run.report["groups"].items() if g["score"] is not None} for run in runs}
    panels = _panels(labels, runs, lambda run: scores_of(scored[run.name]))
    return by_block("scores", [Strip("score", " or ".join(units), panels)]), "Each scorer has a scale of its own."


def _panels(
    labels: Sequence[str], runs: Sequence[Compared], values: Callable[[Compared], Mapping[str, Sequence[float]]]
) -> list[Panel]:
    """By tower the mean over the runs of a label, which differ in what has no part in it, and in their seeds."""
    towers: dict[str, dict[tuple[str, int], list[Sequence[float]]]] = {}
    for label, run in zip(labels, runs, strict=True):
        for tower, blocks in values(run).items():
            towers.setdefault(tower, {}).setdefault((label, len(blocks)), []).append(blocks)
    return [
        Panel(tower, [Line.counted(label, zip(*every, strict=True)) for (label, _), every in lines.items()])
        for tower, lines in towers.items()
    ]


def _costs(comparison: Comparison) -> Iterator[tuple[str, str]]:
    methods = list(dict.fromkeys(run.method for run in comparison.runs))
    order = _order(comparison.runs)
    seconds = {method: _seconds([run for run in comparison.runs if run.method == method], order) for method in methods}
    unit, scale = _unit(max(sum(stages.values()) for stages in seconds.values()))
    scaled = {method: {name: value / scale for name, value in stages.items()} for method, stages in seconds.items()}
    yield stacked("time", f"time of a run in {unit}", scaled), "Mean over the runs of a method, each by itself."
    memory = {m: max(run.peak_memory for run in comparison.runs if run.method == m) for m in methods}
    drawing = stacked("memory", "peak memory", {m: {"": float(size)} for m, size in memory.items()}, bytes_text)
    yield drawing, "The most that a run of a method held, libraries included."


def bytes_text(count: float) -> str:
    """On an axis: ``100 MB``."""
    return exact_bytes(count).replace(".0 ", " ")


def _unit(seconds: float) -> tuple[str, int]:
    return ("seconds", 1) if seconds < 200 else ("minutes", 60) if seconds < 12_000 else ("hours", 3600)


def _order(runs: Sequence[Compared]) -> list[str]:
    """Of stages: each before the one that comes after it in a run."""
    order: list[str] = []
    for run in runs:
        own = [stage["stage"] for stage in run.report["stages"]]
        for name, after in reversed([*zip(own, [*own[1:], None], strict=True)]):
            if name not in order:
                order.insert(order.index(after) if after in order else len(order), name)
    return order


def _seconds(runs: Sequence[Compared], order: Sequence[str]) -> dict[str, float]:
    """Of a method: each stage's mean over the runs, also of those that it has not."""
    return {
        name: sum(s["seconds"] for run in runs for s in run.stages if s["stage"] == name) / len(runs) for name in order
    }


def _bytes(comparison: Comparison) -> tuple[str, str]:
    """Each export's size; methods of one size have one line."""
    dense = sorted({float(run.report["bytes"]["model"]) for run in comparison.runs})
    found: dict[str, dict[float, list[float]]] = {}
    for run in comparison.runs:
        for name, size in run.report["bytes"].items():
            if name != "model":
                found.setdefault(name, {}).setdefault(round(run.sparsity, 6), []).append(float(size))
    lines = [Line.over(name, dict(sorted(sizes.items()))) for name, sizes in found.items()]
    if len({x for line in lines for x in line.x}) == 1:
        rows = {"dense": dense[0], **{line.label: line.mean[0] for line in lines}}
        return stacked("bytes", "weights", {name: {"": size} for name, size in rows.items()}, bytes_text), ""
    return by_sparsity("bytes", "weights", lines, dense[:1], bytes_text), "Mean over methods and seeds."
