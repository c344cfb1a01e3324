"""``ecoflap sweep``: the runs of a grid one after another, in one process; what is done is found, the rest goes on."""

import gc
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.record.folder import RunFolder, open_run, read_json
from ecoflap.core.record.report import is_scored
from ecoflap.core.record.reuse import what_scores_depend_on
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.run.pipeline import run
from ecoflap.core.sweep.file import read_sweep
from ecoflap.core.sweep.grid import Cell, grid_of
from ecoflap.core.sweep.runs import is_sweep, record_runs, swept_runs
from ecoflap.core.text.numbers import time_text


@dataclass
class Swept:
    """A sweep that came to its end.

    :param finished: The run folders that have a report, in the order of the runs.
    :param failed: What became of the others, by run folder.
    """

    folder: Path
    finished: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def planned_sweep(
    what: Path | str,
    *,
    set_: Sequence[str] = (),
    seeds: str | int | Sequence[int] | None = None,
    folder: Path | str | None = None,
    registry: Registry | None = None,
    fresh: bool = False,
) -> tuple[Path, list[Cell]]:
    """The folder of a sweep and its runs, all checked; nothing is written.

    :raises EcoflapError: With every problem of every run, or for a folder that holds something else.
    """
    registry = registry or load_registry()
    target = (Path(folder) if folder is not None else Path("runs") / "sweeps" / Path(what).stem).absolute()
    cells = grid_of(read_sweep(what, set_, seeds), target, registry, fresh=fresh)
    _refuse_strangers(target)
    return target, cells


def sweep(
    what: Path | str,
    *,
    set_: Sequence[str] = (),
    seeds: str | int | Sequence[int] | None = None,
    folder: Path | str | None = None,
    registry: Registry | None = None,
    fresh: bool = False,
    keep_models: bool = False,
    tell: Callable[[str], None] = _to_stderr,
) -> Swept:
    """Do what ``ecoflap sweep`` does.

    :param what: A sweep's file; a recipe's file, or the name of one that ships.
    :param set_: Such as ``sparsity=0.5,0.6``.
    :param seeds: ``3`` for 0, 1 and 2; ``4,7`` or ``[4, 7]`` for these two.
    :param folder: Of the sweep; ``runs/sweeps/NAME`` by default. What is done there is not done again.
    :param fresh: Delete first what these runs have left there.
    :param keep_models: Leave each run's ``model/`` where it is; otherwise it goes when the run is finished.
    :param tell: Is told a line when a run begins and when it ends.
    :raises EcoflapError: With every problem of every run, before the first begins.
    """
    registry = registry or load_registry()
    target, cells = planned_sweep(what, set_=set_, seeds=seeds, folder=folder, registry=registry, fresh=fresh)
    if fresh:
        _emptied(cells)
    record_runs(target, list(map(_entry, cells)))
    recorded = list(_recorded(target, cells))
    tell(f"sweep folder {target}: {counted(cells)}")
    swept = Swept(target)
    for number, cell in enumerate(cells, 1):
        if cell.state != "done":
            head = f"[{number}/{len(cells)}] {', '.join(cell.choice.words)}"
            tell(head)
            began, failure = perf_counter(), _failure(cell, [*recorded, *cells[: number - 1]], registry)
            took = time_text(perf_counter() - began)
            tell(f"{head}: failed after {took}: {failure}" if failure else f"{head}: done in {took}")
            if failure:
                swept.failed[cell.folder.path] = failure
                continue
        swept.finished.append(cell.folder.path)
        if not keep_models and cell.folder.model.is_dir():
            drop_model(cell.folder)
    return swept


def counted(cells: Sequence[Cell]) -> str:
    """``24 runs: 3 done, 1 begun, 20 to do``"""
    states = [cell.state for cell in cells]
    told = [f"{states.count(state)} {state}" for state in ("done", "begun", "to do") if state in states]
    return f"{len(cells)} runs: {', '.join(told)}"


@dataclass(frozen=True)
class Recorded:
    """A finished run of an earlier grid, whose findings may serve again; its fields are those of a :class:`Cell`."""

    folder: RunFolder
    model: str
    scores: str


def _recorded(target: Path, cells: Sequence[Cell]) -> Iterator[Recorded]:
    names = {cell.folder.path.name for cell in cells}
    for name in [entry["folder"] for entry in swept_runs(target) if entry["folder"] not in names]:
        folder = RunFolder(target / name)
        report = read_json(folder.report)
        scores = json.dumps(what_scores_depend_on(report["recipe"])) if is_scored(report) else ""
        yield Recorded(folder, json.dumps(report["recipe"]["model"]), scores)


def _failure(cell: Cell, earlier: Sequence[Cell | Recorded], registry: Registry) -> str:
    """Do one run. What goes wrong is told as text, for an exception would keep the model in memory."""
    _forget_peaks()
    recipe = cell.recipe.model_copy(update={"reuse": (*cell.recipe.reuse, *sources(cell, earlier))})
    try:
        run(recipe, folder=cell.folder.path, registry=registry)
    except EcoflapError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        gc.collect()
    return ""


def sources(cell: Cell, earlier: Sequence[Cell | Recorded]) -> list[Path]:
    """Earlier runs whose scores and whose dense evaluation this one can take over: the first that has them."""
    scored = (one for one in earlier if cell.scored and one.scores == cell.scores and one.folder.plan.is_file())
    evaluated = (one for one in earlier if one.model == cell.model and one.folder.evaluations.is_file())
    found = [next(scored, None), next(evaluated, None)]
    return list(dict.fromkeys(one.folder.path for one in found if one is not None))


def _forget_peaks() -> None:
    """Let the peak memory that a run reports be its own. Elsewhere than on Linux, it is the process's so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def drop_model(folder: RunFolder) -> None:
    """Delete ``model/`` of a finished run. Half of one is never taken for a whole: it is renamed first."""
    with open_run(folder.path, fresh=False):
        aside = folder.model.with_name(".model.partial")  # what a killed process leaves under such a name is removed
        folder.model.rename(aside)
        shutil.rmtree(aside)


def _refuse_strangers(folder: Path) -> None:
    if folder.is_file():
        raise RunError(f"{folder} is a file; a sweep needs a folder. Name another one with --folder")
    if folder.is_dir() and not is_sweep(folder) and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty, and no sweep was begun there. Name another folder with --folder")


def _emptied(cells: Iterable[Cell]) -> None:
    """All at once, so that being cut off later leaves no older run that is taken for one of these."""
    for cell in cells:
        if cell.folder.path.is_dir():
            with open_run(cell.folder.path, fresh=True):
                pass


def _entry(cell: Cell) -> dict[str, Any]:
    grid = {item.key: item.value.value for item in cell.choice.grid}
    return {"folder": cell.folder.path.name, "method": cell.choice.method, "seed": cell.recipe.seed, "grid": grid}
