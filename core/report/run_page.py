"""Make the page of a finished run, ``report.html``. It is one file, and needs no network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ecoflap.core.record.manifest import Manifest
from ecoflap.core.record.report import Measures, RecordedGroup, RecordedMeasure, RecordedStage, Report
from ecoflap.core.report.charts import Line, Panel, Strip, by_block
from ecoflap.core.report.drawings import Drawing, drawn_or_why_not
from ecoflap.core.report.rows import (
    CHECK_COLUMNS,
    EXPORT_COLUMNS,
    MEASURE_COLUMNS,
    REFINED_COLUMNS,
    check_rows,
    export_rows,
    measure_rows,
    refined_rows,
)
from ecoflap.core.sealing.sealed_text import write_sealed_text
from ecoflap.core.text.columns import Column, left, right
from ecoflap.core.text.numbers import NO_VALUE, bytes_text, time_text
from ecoflap.core.text.strict_yaml import write_yaml
from ecoflap.core.text.templates import render

TEMPLATES = Path(__file__).with_name("templates")
GROUP_COLUMNS = (*left("group"), *right("sparsity", "score", "standard error"))


class Bar(NamedTuple):
    """Holds a bar with a name and a text.

    :param share: How much of the bar is full, from 0 to 1.
    """

    name: str
    text: str
    share: float


def write_page(folder: Path, report: Report) -> Path:
    """Write ``report.html`` into a run's folder, and return its path."""
    path = folder / "report.html"
    write_sealed_text(path, page(folder.name, report))
    return path


def page(name: str, report: Report) -> str:
    """Return the whole page. Where nothing can be drawn it says why, and has everything else.

    :param name: Its title: that of the run's folder.
    """
    drawings, without_drawings = drawn_or_why_not(lambda: _by_block(report))
    values = {
        "title": name,
        "fact_columns": (Column(""), Column("", wraps=True)),
        "facts": list(_facts(report)),
        "measure_columns": (*MEASURE_COLUMNS, Column("")),
        "measures": list(_measures(report.measures)),
        "towers": [Bar(tower, f"{100 * share:.2f} %", share) for tower, share in report.towers.items()],
        "drawings": drawings,
        "without_drawings": without_drawings,
        "group_columns": GROUP_COLUMNS,
        "groups": list(_groups(report.groups)),
        "refined_columns": REFINED_COLUMNS,
        "refined": list(refined_rows(report.refined)),
        "sizes": list(_sizes(report.bytes)),
        "export_columns": (*EXPORT_COLUMNS, Column("notes", wraps=True)),
        "exports": list(_exports(report.exports)),
        "check_columns": CHECK_COLUMNS,
        "checks": list(check_rows(report.exports)),
        "seconds": list(_seconds(report.stages)),
        "memory": list(_memory(report.stages)),
        "measured": report.machine.get("memory", "resident, of files too"),
        "warnings": report.warnings,
        "recipe": write_yaml(report.recipe.plain()),
    }
    return render(TEMPLATES / "run.html.j2", values)


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    # Of the recipe's keys, those that name the model and the method; the whole recipe ends the page.
    recipe = report.recipe
    yield "model", recipe.model.source
    yield "prune", recipe.prune.use
    if recipe.refine:
        yield "refine", ", ".join(one.use for one in recipe.refine)
    yield "allocate", recipe.allocate.use
    if recipe.score is not None:
        yield "score", recipe.score.use
    if report.tokens is not None:
        yield "tokens", report.tokens
    yield "seed", str(recipe.seed)
    yield "sparsity", f"{100 * report.sparsity:.4f} % of {report.prunable:,} prunable weights"
    yield "kept", f"{report.kept:,} weights, of which {report.kept_zeros:,} happen to be zero"
    yield "machine", ", ".join(f"{key} {value}" for key, value in report.machine.items())
    yield "versions", ", ".join(f"{key} {value}" for key, value in report.versions.items())
    yield "finished", report.finished


def better(measure: RecordedMeasure) -> str:
    """Return which way a measure is better."""
    return f"{'larger' if measure.larger_is_better else 'smaller'} is better"


def _measures(measures: Measures) -> Iterator[tuple[str, ...]]:
    for row in measure_rows(measures):
        yield *row, better(measures.pruned[row[0]])


def _by_block(report: Report) -> Iterator[Drawing]:
    strips = [Strip("pruned in %", "block", _panels(report.sparsities_by_tower()), is_share=True)]
    if report.is_scored:
        strips.append(Strip("score", report.scored_unit, _panels(report.scores_by_tower())))
    yield Drawing(by_block("blocks", strips))


def _panels(towers: Mapping[str, Sequence[float]]) -> list[Panel]:
    return [Panel(name, [Line.counted("", ([value] for value in values))]) for name, values in towers.items()]


def _groups(groups: Mapping[str, RecordedGroup]) -> Iterator[tuple[str, ...]]:
    for name, group in groups.items():
        score = str(group.curve) if group.curve else NO_VALUE if group.score is None else f"{group.score:.6g}"
        error = NO_VALUE if group.standard_error is None else f"{group.standard_error:.2g}"
        yield name, f"{100 * group.sparsity:.2f} %", score, error


def _sizes(sizes: Mapping[str, int]) -> Iterator[Bar]:
    largest = max(sizes.values(), default=0) or 1
    for name, size in sizes.items():
        yield Bar(name, f"{bytes_text(size)} ({size:,} bytes)", size / largest)


def _exports(manifests: Mapping[str, Manifest]) -> Iterator[tuple[str, ...]]:
    for row in export_rows(manifests):
        yield *row, " ".join(manifests[row[0]].notes)


def _seconds(stages: Sequence[RecordedStage]) -> Iterable[Bar]:
    longest = max((stage.seconds for stage in stages), default=0) or 1
    return [Bar(stage.stage, time_text(stage.seconds), stage.seconds / longest) for stage in stages]


def _memory(stages: Sequence[RecordedStage]) -> Iterable[Bar]:
    most = max((stage.peak_memory for stage in stages), default=0) or 1
    return [Bar(stage.stage, bytes_text(stage.peak_memory), stage.peak_memory / most) for stage in stages]
