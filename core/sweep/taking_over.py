"""Say which earlier run of a sweep a run takes its scores and its dense evaluation over from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ecoflap.core.recipe.schema import rounds_in
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import Identity
from ecoflap.core.record.report import read_report
from ecoflap.core.record.reuse import code_of_scores, what_scores_depend_on
from ecoflap.core.record.sweep_list import is_sweep, swept_runs
from ecoflap.core.sweep.grid import PlannedRun


@dataclass(frozen=True)
class EarlierRun:
    """Holds a finished run of an earlier grid, which may serve again; its fields are those of a `PlannedRun`."""

    folder: RunFolder
    model: str
    scores: str


Earlier: TypeAlias = PlannedRun | EarlierRun


def earlier_runs(target: Path, runs: Sequence[PlannedRun]) -> Iterator[EarlierRun]:
    """Yield the finished runs of a sweep's folder that are none of its runs now."""
    names = {run.folder.path.name for run in runs}
    for entry in swept_runs(target) if is_sweep(target) else ():
        folder = RunFolder(target / entry["folder"])
        if entry["folder"] in names or not folder.report.is_file():
            continue
        report = read_report(folder.report)
        recipe = report.recipe.plain()
        at_once = report.looked_at_scores and rounds_in(report.recipe.rounds) == 1
        scores = json.dumps(what_scores_depend_on(recipe)) if at_once else ""
        yield EarlierRun(folder, json.dumps(recipe["model"]), scores)


def to_reuse(planned: PlannedRun, earlier: Sequence[Earlier]) -> list[Path]:
    """Return the first earlier runs whose scores and whose dense evaluation this one can take over."""
    found = [scored(planned, earlier), evaluated(planned, earlier)]
    return list(dict.fromkeys(one.folder.path for one in found if one is not None))


def scored(planned: PlannedRun, earlier: Sequence[Earlier], *, ahead: bool = False) -> Earlier | None:
    """Give the first earlier run whose scores a run can take over.

    :param ahead: Take runs that are still to be done for done, as they will be when this one begins.
    """
    code = code_of_scores(planned.recipe)
    alike = (one for one in earlier if planned.scores and one.scores == planned.scores)
    same = (one for one in alike if Identity(one.folder).goes_on_with(code))
    return next((one for one in same if one.folder.plan.is_file() or (ahead and _is_to_be_done(one))), None)


def evaluated(planned: PlannedRun, earlier: Sequence[Earlier], *, ahead: bool = False) -> Earlier | None:
    """Give the first earlier run whose dense evaluation a run can take over.

    :param ahead: As of :func:`scored`.
    """
    same = (one for one in earlier if one.model == planned.model)
    return next((one for one in same if one.folder.evaluations.is_file() or (ahead and _evaluates(one))), None)


def _is_to_be_done(one: Earlier) -> bool:
    return isinstance(one, PlannedRun) and one.state != "done"


def _evaluates(one: Earlier) -> bool:
    return isinstance(one, PlannedRun) and bool(one.recipe.evaluate) and one.state != "done"
