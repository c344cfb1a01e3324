"""Run a sweep: its runs one after another in one process, of which those that are done are not done again."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ecoflap.core.disk.reading import what_to_mend
from ecoflap.core.disk.whole_files import delete_whole
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.ranks.launch import require_alone
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.open_run import locked, open_run, refuse_inside_run, refuse_name
from ecoflap.core.record.sweep_list import LOCK, is_sweep
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.run.pipeline import run
from ecoflap.core.sweep.failures import failure_of
from ecoflap.core.sweep.file import read_sweep
from ecoflap.core.sweep.grid import PlannedRun, planned_runs
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.sweep.runs import record_runs
from ecoflap.core.sweep.several import STOPPED, Runners, at_once, delete_left
from ecoflap.core.sweep.taking_over import Earlier, earlier_runs, evaluated, scored, to_reuse
from ecoflap.core.text.numbers import time_text
from ecoflap.core.text.printable import printable


@dataclass
class Swept:
    """Tells what became of a sweep that came to its end.

    :param finished: The run folders that have a report, in the order of the runs.
    :param failed: What became of the others, by run folder.
    """

    folder: Path
    finished: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def _to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def planned_sweep(request: SweepRequest, registry: Registry | None = None) -> list[PlannedRun]:
    """Return the runs of a sweep, all checked; nothing is written.

    :raises EcoflapError: With every problem of every run, or for a folder that holds something else.
    """
    sweep = read_sweep(request.what, request.set_, request.seeds)
    trusting = (registry or load_registry()).trusting(request.allow_code)
    anew, accepting = request.fresh, request.accept_change
    runs = planned_runs(sweep, request.target, trusting, fresh=anew, accept_change=accepting)
    _refuse_strangers(request.target)
    return runs


def sweep(
    request: SweepRequest, *, registry: Registry | None = None, tell: Callable[[str], None] = _to_stderr
) -> Swept:
    """Do what ``ecoflap sweep`` does.

    :param tell: Is given a line when a run begins and when it ends.
    :raises EcoflapError: With every problem of every run, before the first begins; or where several processes do it,
        as under torchrun, or another sweep works in the folder.
    """
    require_alone("sweep")
    registry = registry or load_registry()
    runs = planned_sweep(request, registry)
    with locked(request.target / LOCK, "sweep's folder"):
        return _swept(request, runs, registry, tell)


def _swept(request: SweepRequest, runs: Sequence[PlannedRun], registry: Registry, tell: Callable[[str], None]) -> Swept:
    delete_left(request.target)
    if request.fresh:
        _empty(runs)
    record_runs(request.target, list(map(_entry, runs)), fresh=request.fresh)
    earlier: list[Earlier] = list(earlier_runs(request.target, runs))
    tell(f"sweep folder {request.target}: {states_text(runs)}")
    heads = {run.folder.path: f"[{n}/{len(runs)}] {', '.join(run.choice.words)}" for n, run in enumerate(runs, 1)}
    failed: dict[Path, str] = {}
    for planned, failure in _ended(request, runs, earlier, registry, heads, tell):
        if failure:
            failed[planned.folder.path] = failure
        elif not request.keep_models and planned.folder.model.is_dir():
            _drop_model(planned.folder, heads[planned.folder.path], tell)
    paths = [run.folder.path for run in runs]
    return Swept(
        request.target,
        [path for path in paths if path not in failed],
        {path: failed[path] for path in paths if path in failed},
    )


def _ended(
    request: SweepRequest,
    runs: Sequence[PlannedRun],
    earlier: list[Earlier],
    registry: Registry,
    heads: Mapping[Path, str],
    tell: Callable[[str], None],
) -> Iterator[tuple[PlannedRun, str]]:
    """Do the runs that are not done, and yield each as it ends, with what went wrong."""
    if request.processes > 1:
        yield from _at_once(request, runs, earlier, heads, tell)
        return
    for planned in runs:
        do = partial(_failure, planned, earlier, registry, accept_change=request.accept_change)
        failure = "" if planned.state == "done" else _tried(do, heads[planned.folder.path], tell)
        earlier.append(planned)
        yield planned, failure


def _at_once(
    request: SweepRequest,
    runs: Sequence[PlannedRun],
    earlier: list[Earlier],
    heads: Mapping[Path, str],
    tell: Callable[[str], None],
) -> Iterator[tuple[PlannedRun, str]]:
    done = [planned for planned in runs if planned.state == "done"]
    earlier += done
    yield from ((planned, "") for planned in done)
    runners = Runners(request)

    def do(planned: PlannedRun) -> str:
        recipe = _reusing(planned, earlier)
        return _tried(partial(runners.run, recipe, planned.folder.path), heads[planned.folder.path], tell)

    def waits(planned: PlannedRun, running: Sequence[PlannedRun]) -> bool:
        """Wait for a run that is finding what this one could take over, and that nobody has found yet."""
        scoring = any(one.scores == planned.scores for one in running) and scored(planned, earlier) is None
        evaluating = any(one.model == planned.model for one in running) and evaluated(planned, earlier) is None
        return (bool(planned.scores) and scoring) or (bool(planned.recipe.evaluate) and evaluating)

    left = [one for one in runs if one not in done]
    for planned, failure in at_once(left, request.processes, do, waits, runners.stop):
        earlier.append(planned)
        yield planned, failure


def _tried(do: Callable[[], str], head: str, tell: Callable[[str], None]) -> str:
    """Do one run, and tell when it begins and ends.

    :param do: Does it, and returns what went wrong.
    :param head: How the run is called where it is told of.
    :return: What went wrong; empty where nothing did.
    """
    tell(head)
    began = perf_counter()
    failure = do()
    took = time_text(perf_counter() - began)
    well = {"": "done in", STOPPED: "stopped after"}.get(failure)
    tell(f"{head}: {well} {took}" if well else f"{head}: failed after {took}: {failure}")
    return failure


def states_text(runs: Sequence[PlannedRun]) -> str:
    """Say how far the runs are: ``24 runs: 3 done, 1 begun, 20 to do``."""
    states = [run.state for run in runs]
    counts = [f"{states.count(state)} {state}" for state in ("done", "begun", "to do") if state in states]
    return f"{len(runs)} runs: {', '.join(counts)}"


def _failure(planned: PlannedRun, earlier: Sequence[Earlier], registry: Registry, *, accept_change: bool) -> str:
    """Do one run, and return what went wrong as text: an exception would keep the model in memory."""
    _forget_peaks()
    try:
        run(_reusing(planned, earlier), folder=planned.folder.path, registry=registry, accept_change=accept_change)
    except Exception as error:
        if what_to_mend(error) is None:
            traceback.print_exc()
        return failure_of(error)
    finally:
        gc.collect()
    return ""


def _reusing(planned: PlannedRun, earlier: Sequence[Earlier]) -> Recipe:
    """Give the recipe of a run, which takes over what earlier ones have found."""
    return planned.recipe.model_copy(update={"reuse": (*planned.recipe.reuse, *to_reuse(planned, earlier))})


def _forget_peaks() -> None:
    """Let the GPU's peak memory that a run reports be its own."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _drop_model(folder: RunFolder, head: str, tell: Callable[[str], None]) -> None:
    """Delete ``model/``, or tell why that cannot be: the run is finished all the same, and other runs go on."""
    try:
        delete_model(folder)
    except (EcoflapError, OSError) as error:
        tell(f"{head}: its model is left, and the same command tries again to delete it: {failure_of(error)}")


def delete_model(folder: RunFolder) -> None:
    """Delete ``model/`` of a finished run. Half of one is never taken for a whole: it is renamed first.

    Of a link the link alone goes: what it leads to is somebody's.
    """
    with open_run(folder.path, fresh=False):
        if folder.model.is_symlink():
            folder.model.unlink()
            return
        if not delete_whole(folder.model):
            raise RunError(f"{folder.model} cannot be deleted, as is done without --keep-models")


def _refuse_strangers(folder: Path) -> None:
    refuse_name(folder)
    if folder.is_file():
        raise RunError(f"{folder} is a file; a sweep needs a folder. Name another one with --folder")
    if folder.is_dir() and not is_sweep(folder) and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise RunError(f"{folder} is not empty, and no sweep was begun there. Name another folder with --folder")
    if not is_sweep(folder):
        refuse_inside_run(folder)


def _empty(runs: Iterable[PlannedRun]) -> None:
    """Empty all folders at once, so that being cut off later leaves no older run that is taken for one of these."""
    for planned in runs:
        if planned.folder.path.is_dir():
            with open_run(planned.folder.path, fresh=True):
                pass


def _entry(planned: PlannedRun) -> dict[str, Any]:
    """Return what ``sweep.json`` holds of a run."""
    return {
        "folder": planned.folder.path.name,
        "method": planned.choice.method,
        "seed": planned.recipe.seed,
        "grid": {item.key: item.value.value for item in planned.choice.grid},
    }
