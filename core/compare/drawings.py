"""Make the drawings of a comparison, in chapters of its page."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecoflap.core.compare.comparison import ComparedRun, Comparison, RunGroup
from ecoflap.core.compare.methods import distinct_names
from ecoflap.core.recipe.schema import scores_depend_on
from ecoflap.core.report.charts import Line, Panel, Strip, by_block, by_method, by_sparsity, stacked
from ecoflap.core.report.drawings import Drawing
from ecoflap.core.report.run_page import better
from ecoflap.core.text.numbers import bytes_text

DIVIDING = ("allocate", "towers", "include", "model")
"""Keys by which a budget is divided otherwise, beside those of the scores: the allocator, and what it divides it among.
A pruner keeps what it is told to, and the sparsity has a drawing of its own."""
LONGEST_AXIS = 200
"""How many seconds or minutes an axis shows at most before it counts in the next larger unit: a few hundred are read
at a glance, as thousands are not."""


@dataclass(frozen=True)
class Chapter:
    """Holds drawings under one heading."""

    title: str
    drawings: Sequence[Drawing]


def chapters(comparison: Comparison) -> Iterator[Chapter]:
    """Yield the chapters that have something to draw."""
    measures = [_measure(name, number, comparison) for number, name in enumerate(comparison.metrics)]
    every = (
        Chapter("Measures against sparsity", measures),
        Chapter("Sparsity by block", list(_sparsities(comparison))),
        Chapter("Scores by block", list(_scores(comparison))),
        Chapter("Time and memory", list(_costs(comparison))),
        Chapter("Weights on disk", [_bytes(comparison)] if comparison.exports else []),
    )
    return (chapter for chapter in every if chapter.drawings)


def _measure(name: str, number: int, comparison: Comparison) -> Drawing:
    groups = [group for group in comparison.groups if group.values(name)]
    dense = comparison.dense(name)
    levels = [] if dense is None else sorted({dense.lowest, dense.highest})
    measure = next(run.pruned[name] for run in comparison.runs if name in run.pruned)
    label = f"{name} ({better(measure)})"
    lines = _lines(groups, name, with_errors=not comparison.has_seeds)
    caption = ""
    if any(line.has_spread for line in lines):
        caption = "Mean over seeds, smallest to largest." if comparison.has_seeds else "With the standard error."
    if len({group.sparsity for group in groups}) == 1:
        return Drawing(by_method(f"measure{number}", label, lines, levels), _at(groups[0].sparsity, caption))
    return Drawing(by_sparsity(f"measure{number}", label, lines, levels), caption)


def _at(sparsity: float, more: str = "") -> str:
    return f"At {100 * sparsity:.4g} % sparsity. {more}".strip()


def _lines(groups: Iterable[RunGroup], name: str, *, with_errors: bool) -> list[Line]:
    """Return a line for each method.

    :param with_errors: Whether the spread is the measure's standard error instead of that over seeds.
    """
    found: dict[str, dict[float, Sequence[float]]] = {}
    for group in groups:
        values = _with_error(group, name) if with_errors else group.values(name)
        found.setdefault(group.method, {})[group.sparsity] = values
    return [Line.over(method, points) for method, points in found.items()]


def _with_error(group: RunGroup, name: str) -> list[float]:
    measure = next(run.pruned[name] for run in group.runs if name in run.pruned)
    error = measure.standard_error or 0.0
    return [measure.value - error, measure.value, measure.value + error]


def _sparsities(comparison: Comparison) -> Iterator[Drawing]:
    """Yield a drawing for each sparsity. Runs that differ in their pruner alone have one line."""
    for number, sparsity in enumerate(sorted({group.sparsity for group in comparison.groups})):
        runs = [run for run in comparison.runs if run.level == sparsity]
        panels = _panels(_allocations(runs), runs, lambda run: run.report.sparsities_by_tower())
        strip = Strip("pruned in %", "block", panels, is_share=True)
        yield Drawing(by_block(f"blocks{number}", [strip]), _at(sparsity))


def _allocations(runs: Sequence[ComparedRun]) -> list[str]:
    """Return for each run what divided its budget: ``zeroth_order → ecoflap``."""
    labels = [run.report.allocation for run in runs]
    return distinct_names(labels, [_keys_of(run, (*DIVIDING, *_scoring(run))) for run in runs])


def _scoring(run: ComparedRun) -> tuple[str, ...]:
    """Name the keys that a run's scores depend on; none where nothing asked for scores."""
    return scores_depend_on() if run.report.is_scored else ()


def _keys_of(run: ComparedRun, keys: Sequence[str]) -> dict[str, Any]:
    """Return some keys of a run's recipe."""
    recipe = run.report.recipe.plain()
    return {key: recipe.get(key) for key in dict.fromkeys(keys)}


def _scores(comparison: Comparison) -> Iterator[Drawing]:
    """Yield a drawing of all scores, where a run has some."""
    scored = [
        (run, run.report.recipe.score.use)
        for run in comparison.runs
        if run.report.recipe.score is not None and run.report.is_scored
    ]
    if scored:
        runs = [run for run, _ in scored]
        units = dict.fromkeys(run.report.scored_unit for run in runs)
        recipes = [_keys_of(run, _scoring(run)) for run in runs]
        labels = distinct_names([scorer for _, scorer in scored], recipes)
        panels = _panels(labels, runs, lambda run: run.report.scores_by_tower())
        strip = Strip("score", " or ".join(units), panels)
        yield Drawing(by_block("scores", [strip]), "Each scorer has a scale of its own.")


def _panels(
    labels: Sequence[str], runs: Sequence[ComparedRun], values: Callable[[ComparedRun], Mapping[str, Sequence[float]]]
) -> list[Panel]:
    """Return a panel for each tower, with the mean over the runs of each label."""
    towers: dict[str, dict[tuple[str, int], list[Sequence[float]]]] = {}
    for label, run in zip(labels, runs, strict=True):
        for tower, blocks in values(run).items():
            towers.setdefault(tower, {}).setdefault((label, len(blocks)), []).append(blocks)
    return [
        Panel(tower, [Line.counted(label, zip(*every, strict=True)) for (label, _), every in lines.items()])
        for tower, lines in towers.items()
    ]


def _costs(comparison: Comparison) -> Iterator[Drawing]:
    methods = list(dict.fromkeys(run.method for run in comparison.runs))
    order = _stages_in_order(comparison.runs)
    seconds = {method: _seconds([run for run in comparison.runs if run.method == method], order) for method in methods}
    unit, scale = _unit(max(sum(stages.values()) for stages in seconds.values()))
    scaled = {method: {name: value / scale for name, value in stages.items()} for method, stages in seconds.items()}
    caption = "Mean over the runs of a method."
    if any(run.taken_over for run in comparison.runs):
        caption += " What a run took over from another is not in it."
    yield Drawing(stacked("time", f"time of a run in {unit}", scaled), caption)
    memory = {m: max(run.peak_memory for run in comparison.runs if run.method == m) for m in methods}
    drawing = stacked("memory", "peak memory", {m: {"": float(size)} for m, size in memory.items()}, _bytes_tick)
    yield Drawing(drawing, "The most that a run of a method held, libraries included.")


def _bytes_tick(count: float) -> str:
    """Return a size as an axis has it: ``100 MB``."""
    return bytes_text(count).replace(".0 ", " ")


def _unit(seconds: float) -> tuple[str, int]:
    """Return the unit in which a time is drawn, and how many seconds that is."""
    for unit, scale in (("seconds", 1), ("minutes", 60)):
        if seconds < LONGEST_AXIS * scale:
            return unit, scale
    return "hours", 3600


def _stages_in_order(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the names of all stages, each before the one that comes after it in a run."""
    order: list[str] = []
    for run in runs:
        own = [stage.stage for stage in run.stages]
        for name, after in reversed([*zip(own, [*own[1:], None], strict=True)]):
            if name not in order:
                order.insert(order.index(after) if after in order else len(order), name)
    return order


def _seconds(runs: Sequence[ComparedRun], order: Sequence[str]) -> dict[str, float]:
    """Return each stage's mean over the runs of a method; a run without the stage counts as zero."""
    return {
        name: sum(stage.seconds for run in runs for stage in run.stages if stage.stage == name) / len(runs)
        for name in order
    }


def _bytes(comparison: Comparison) -> Drawing:
    """Draw each export's size; methods of one size have one line."""
    dense = min(float(run.report.model_bytes) for run in comparison.runs)
    found: dict[str, dict[float, list[float]]] = {}
    for run in comparison.runs:
        for name, size in run.report.export_bytes.items():
            found.setdefault(name, {}).setdefault(run.level, []).append(float(size))
    lines = [Line.over(name, dict(sorted(sizes.items()))) for name, sizes in found.items()]
    if len({x for line in lines for x in line.x}) == 1:
        rows = {"dense": dense, **{line.label: line.mean[0] for line in lines}}
        return Drawing(stacked("bytes", "weights", {name: {"": size} for name, size in rows.items()}, _bytes_tick))
    drawing = by_sparsity("bytes", "weights", lines, [dense], _bytes_tick)
    return Drawing(drawing, "Mean over methods and seeds.")
