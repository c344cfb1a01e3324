"""What the command line prints: titled tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getdoc, signature
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ecoflap.core.compare.table import TEXTS, Row
from ecoflap.core.record.report import method_of
from ecoflap.core.registry.parameters import KINDS
from ecoflap.core.registry.registry import Registry
from ecoflap.core.sweep.grid import Cell
from ecoflap.core.text.numbers import NOTHING, bytes_text, export_sizes, forms, measure_text, ratio_text


@dataclass(frozen=True)
class Section:
    """A table. Cells that hold numbers are aligned to the right by the column's name starting with ``>``."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


UNFOLDED = 10_000
"""Columns where nothing has to fit a screen: each row on a line of its own, for grep and for files."""


def show(sections: Sequence[Section]) -> None:
    """Print to standard output: as wide as the terminal, or as wide as the rows where it is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=UNFOLDED)
    for section in sections:
        if section.title:
            console.print(section.title, style="bold", highlight=False, markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in section.columns:
            table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        console.print(table, highlight=False)


def run_summary(report: Mapping[str, Any]) -> list[Section]:
    """What a run came to."""
    measures = [
        (
            name,
            measure_text(report["measures"]["dense"].get(name)),
            measure_text(pruned),
            f"{pruned['n']:,} {pruned['unit']}",
        )
        for name, pruned in report["measures"]["pruned"].items()
    ]
    towers = [(name, f"{100 * share:.2f} %") for name, share in report["towers"].items()]
    model = report["bytes"]["model"]
    sizes = [(name, bytes_text(size) + ratio_text(size, model)) for name, size in report["bytes"].items()]
    title = f"{method_of(report)}: {100 * report['sparsity']:.2f} % of {report['prunable']:,} weights pruned"
    sections = [Section(title, ("tower", ">sparsity"), towers)]
    if measures:
        sections.append(Section("", ("measure", ">dense", ">pruned", ">over"), measures))
    return [*sections, Section("", ("weights in", ">size"), sizes)]


def export_tables(manifests: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """What exports hold, from their manifests."""
    sizes = [
        (name, *(NOTHING if size is None else bytes_text(size) for size in export_sizes(manifest)), forms(manifest))
        for name, manifest in manifests.items()
    ]
    checks = [
        (name, check["view"], check["runtime"], f"{check['difference']:.2g}", f"{check['tolerance']:.2g}")
        for name, manifest in manifests.items()
        for check in manifest["checks"]
    ]
    sections = [
        Section("exports", ("export", ">model", ">deflated", ">dense file", ">stored", "pruned weights"), sizes),
        Section("read again", ("export", "view", "runtime", ">largest difference", ">tolerance"), checks),
    ]
    return [section for section in sections if section.rows]


def comparison_table(rows: Sequence[Row], title: str = "") -> Section:
    columns = [column if column in TEXTS else f">{column}" for column in rows[0]]
    return Section(title, columns, [list(row.values()) for row in rows])


def sweep_table(folder: Path, cells: Sequence[Cell], fresh: bool) -> list[Section]:
    """The runs of a sweep in their order, and what each takes over."""
    states = ["to do" if fresh else cell.state for cell in cells]
    rows = [
        (str(number), cell.folder.path.name, state, *_taken_over(cell, cells[: number - 1]))
        for number, (cell, state) in enumerate(zip(cells, states, strict=True), 1)
    ]
    columns = (">", "run", "state", "scores", "dense evaluation")
    return [Section(f"{folder}: {len(cells)} runs, {states.count('done')} of them done", columns, rows)]


def _taken_over(cell: Cell, earlier: Sequence[Cell]) -> tuple[str, str]:
    """From the first run before it that has them."""
    scored = next((str(at) for at, one in enumerate(earlier, 1) if one.scores == cell.scores), "")
    evaluated = next((str(at) for at, one in enumerate(earlier, 1) if one.model == cell.model), "")
    scores = (f"those of {scored}" if scored else "computed") if cell.scored else "none"
    dense = (f"that of {evaluated}" if evaluated else "computed") if cell.recipe.evaluate else "none"
    return scores, dense


def parts(registry: Registry, kind: str | None) -> list[Section]:
    """The registered parts of one kind, or of all."""
    return [
        Section(f"{name}s", (name, "parameters", "what it does", "from"), list(_parts(registry, name)))
        for name in ([kind] if kind else KINDS)
    ]


def _parts(registry: Registry, kind: str) -> Iterator[tuple[str, str, str, str]]:
    for name in registry.names(kind):
        factory = registry.find(kind, name)
        summary = (getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")
        yield name, _parameters(factory), summary, str(registry.origin(kind, name))


def _parameters(factory: Callable[..., Any]) -> str:
    found = signature(factory).parameters.values()
    empty = signature(factory).empty
    return ", ".join(p.name if p.default is empty else f"{p.name}={p.default!r}" for p in found)
