"""Make the table that ``ecoflap sweep --dry-run`` prints."""

from collections.abc import Sequence

from ecoflap.core.cli.tables import Section
from ecoflap.core.sweep.grid import PlannedRun
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.text.columns import left, right

COLUMNS = (*right(""), *left("run", "state", "scores", "dense evaluation"))


def sweep_table(request: SweepRequest, runs: Sequence[PlannedRun]) -> list[Section]:
    """Return the runs of a sweep in their order, and what each takes over."""
    states = ["to do" if request.fresh else run.state for run in runs]
    rows = [
        (str(number), run.folder.path.name, state, _scores(run, runs[: number - 1]), _dense(run, runs[: number - 1]))
        for number, (run, state) in enumerate(zip(runs, states, strict=True), 1)
    ]
    title = f"{request.target}: {len(runs)} runs, {states.count('done')} of them done"
    return [Section(title, COLUMNS, rows)]


def _scores(run: PlannedRun, earlier: Sequence[PlannedRun]) -> str:
    if not run.scored:
        return "none"
    numbers = (str(number) for number, other in enumerate(earlier, 1) if other.scores == run.scores)
    first = next(numbers, None)
    return "computed" if first is None else f"those of {first}"


def _dense(run: PlannedRun, earlier: Sequence[PlannedRun]) -> str:
    if not run.recipe.evaluate:
        return "none"
    numbers = (str(number) for number, other in enumerate(earlier, 1) if other.model == run.model)
    first = next(numbers, None)
    return "computed" if first is None else f"that of {first}"
