"""Write a comparison as tables of texts, for the terminal, for Markdown and for the page."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ecoflap.core.compare.comparison import ComparedRun, Comparison, RunGroup, spread
from ecoflap.core.compare.differences import what_differs
from ecoflap.core.report.rows import measure_text
from ecoflap.core.text.columns import Column
from ecoflap.core.text.numbers import NO_VALUE, bytes_text, mean, ratio_text, time_text, with_error

Row = dict[str, str]
"""A cell by its column's title; all rows of a table have the same."""

TEXTS = ("run", "method")
"""Columns that hold no numbers."""
TAKEN_OVER = " †"
"""Follows a time that lacks what was taken over from another run; :func:`notes` explains it."""


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of a table that has at least one row."""
    return [Column(title, "left" if title in TEXTS else "right") for title in rows[0]]


def rows(comparison: Comparison) -> list[Row]:
    """Return a row for each run; where there are several seeds, one for all of them and one for the dense model."""
    if comparison.has_seeds:
        return [_dense_row(comparison), *(_group_row(group, comparison) for group in comparison.groups)]
    return run_rows(comparison)


def run_rows(comparison: Comparison) -> list[Row]:
    """Return a row for each run."""
    return [_run_row(run, comparison) for run in comparison.runs]


def _run_row(run: ComparedRun, comparison: Comparison) -> Row:
    row = {"run": run.name, "method": run.method, "sparsity": _percent(run.sparsity)}
    if comparison.has_seeds:
        row["seed"] = str(run.seed)
    for name in comparison.metrics:
        row[f"{name} dense"] = measure_text(run.dense.get(name))
        row[f"{name} pruned"] = measure_text(run.pruned.get(name))
    return row | _costs([run], comparison)


def _dense_row(comparison: Comparison) -> Row:
    row = {"method": "dense", "sparsity": _percent(0.0), "seeds": NO_VALUE}
    for name, title in _measure_titles(comparison).items():
        dense = comparison.dense(name)
        row[title] = NO_VALUE if dense is None else _between(dense.lowest, dense.highest)
    sizes = {run.report.model_bytes for run in comparison.runs}
    rest = dict.fromkeys(_costs(comparison.runs, comparison), NO_VALUE)
    return row | rest | {"model": bytes_text(sizes.pop()) if len(sizes) == 1 else NO_VALUE}


def measure_title(metric: str, others: Collection[str]) -> str:
    """Return the title of a measure's column, which may have the name of another column."""
    return f"{metric} (measure)" if metric in others else metric


def _measure_titles(comparison: Comparison) -> dict[str, str]:
    others = ("method", "sparsity", "seeds", *_costs(comparison.runs, comparison))
    return {name: measure_title(name, others) for name in comparison.metrics}


def _between(low: float, high: float) -> str:
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _group_row(group: RunGroup, comparison: Comparison) -> Row:
    row = {"method": group.method, "sparsity": _percent(group.sparsity), "seeds": str(len(group.by_seeds))}
    for name, title in _measure_titles(comparison).items():
        values = group.values(name)
        row[title] = with_error(mean(values), spread(values)) if values else NO_VALUE
    return row | _costs(group.runs, comparison)


def _costs(runs: Sequence[ComparedRun], comparison: Comparison) -> Row:
    """Return the mean time, the most memory, and bytes, which seeds do not change by much."""
    mark = TAKEN_OVER if any(run.taken_over for run in runs) else ""
    model = mean([run.report.model_bytes for run in runs])
    row = {
        "time": time_text(mean([run.seconds for run in runs])) + mark,
        "peak memory": bytes_text(max(run.peak_memory for run in runs)) + mark,
        "model": bytes_text(model),
    }
    for name in comparison.exports:
        reports = [run.report for run in runs if name in run.report.bytes]
        row[name] = _size([one.bytes[name] for one in reports], [one.dense_bytes(name) for one in reports])
    return row


def _size(sizes: Sequence[int], dense: Sequence[int]) -> str:
    return bytes_text(mean(sizes)) + ratio_text(mean(sizes), mean(dense)) if sizes else NO_VALUE


def tower_rows(comparison: Comparison) -> list[Row]:
    """Return the sparsity of each tower by method, as a mean over seeds; no row where all runs have the same one."""
    towers = comparison.towers
    if len(towers) < 2:
        return []
    return [
        {"method": group.method, "sparsity": _percent(group.sparsity), **{name: _share(group, name) for name in towers}}
        for group in comparison.groups
    ]


def _share(group: RunGroup, tower: str) -> str:
    """Return the tower's mean sparsity over the runs whose model has it."""
    shares = [run.report.towers[tower] for run in group.runs if tower in run.report.towers]
    return _percent(mean(shares)) if shares else NO_VALUE


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def notes(comparison: Comparison) -> Iterator[str]:
    """Yield what has to be said of the table, and what else differs between the runs."""
    yield from table_notes(comparison)
    for key, values in what_differs(comparison).items():
        by_value = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
        yield f"Differs: {key}: {by_value}"


def table_notes(comparison: Comparison) -> Iterator[str]:
    """Yield what has to be said of the table alone."""
    if comparison.metrics:
        seeds = "mean ± standard deviation over seeds" if comparison.has_seeds else "value ± standard error"
        yield f"Measures: {seeds}."
    same = "Of the same seeds, and counted once" if comparison.has_seeds else "Of the same seeds"
    for group in comparison.groups:
        for runs in group.by_seeds:
            if len(runs) > 1:
                yield f"{same}: {', '.join(run.name for run in runs)}"
    for group in comparison.groups:
        if group.is_one_model:
            names = ", ".join(run.name for run in group.runs)
            yield f"Of other seeds, and the same model bit for bit, so that ± says nothing: {names}"
    if any(run.taken_over for run in comparison.runs):
        whats = dict.fromkeys(what for run in comparison.runs for what in run.taken_over)
        by_what = "; ".join(f"{what} ({', '.join(_that_took(what, comparison))})" for what in whats)
        yield f"†: as measured, without what these took over from another run: {by_what}."
    if comparison.unfinished:
        yield f"Not finished, and left out: {', '.join(path.name for path in comparison.unfinished)}"


def _that_took(what: str, comparison: Comparison) -> list[str]:
    """Return the runs that took something over; where rows are methods, how many of each method's did."""
    took = [run for run in comparison.runs if what in run.taken_over]
    if not comparison.has_seeds:
        return [run.name for run in took]
    every, some = (Counter(run.method for run in runs) for runs in (comparison.runs, took))
    return [f"{method}: {count} of {every[method]} runs" for method, count in some.items()]


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    columns = columns_of(rows)
    titles = {column.title: column.title for column in columns}
    cells = [[row[column.title].replace("|", "\\|") for column in columns] for row in (titles, *rows)]
    widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
    head, *body = (_line(line, widths, columns) for line in cells)
    yield head
    yield f"|{'|'.join(_rule(column, width) for column, width in zip(columns, widths, strict=True))}|"
    yield from body


def _rule(column: Column, width: int) -> str:
    dashes = "-" * (width + 1)
    return f":{dashes}" if column.align == "left" else f"{dashes}:"


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = (
        cell.ljust(width) if column.align == "left" else cell.rjust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return f"| {' | '.join(padded)} |"
