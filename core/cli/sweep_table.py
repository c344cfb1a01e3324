"""Make the table that ``ecoflap sweep --dry-run`` prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ecoflap.core.cli.tables import Section
from ecoflap.core.sweep.grid import PlannedRun
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.sweep.taking_over import Earlier, earlier_runs, evaluated, scored
from ecoflap.core.text.columns import left, right

COLUMNS = (*right(""), *left("run", "state", "scores", "dense evaluation"))


def sweep_table(request: SweepRequest, runs: Sequence[PlannedRun]) -> list[Section]:
    """Return the runs of a sweep in their order, and what each takes over."""
    states = ["to do" if request.fresh else run.state for run in runs]
    others = list(earlier_runs(request.target, runs))
    called: dict[Path, str] = {one.folder.path: one.folder.path.name for one in others}
    called |= {run.folder.path: str(number) for number, run in enumerate(runs, 1)}
    rows = []
    for number, (run, state) in enumerate(zip(runs, states, strict=True), 1):
        earlier: list[Earlier] = [*others, *runs[: number - 1]]
        scores = _taken("those of", scored(run, earlier, ahead=True), called) if run.scored else "none"
        dense = _taken("that of", evaluated(run, earlier, ahead=True), called) if run.recipe.evaluate else "none"
        rows.append((str(number), run.folder.path.name, state, scores, dense))
    title = f"{request.target}: {len(runs)} runs, {states.count('done')} of them done"
    return [Section(title, COLUMNS, rows)]


def _taken(what: str, one: Earlier | None, called: Mapping[Path, str]) -> str:
    return "computed" if one is None else f"{what} {called[one.folder.path]}"
