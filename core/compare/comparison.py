"""Put finished runs side by side: say which method each is, and which of them are seeds of each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from statistics import stdev
from typing import Any

from ecoflap.core.compare.contents import unlike_contents, without_drawn
from ecoflap.core.compare.methods import method_names, seeds_of
from ecoflap.core.record.folder import PRUNED_MODEL, RunFolder
from ecoflap.core.record.open_run import require_finished
from ecoflap.core.record.report import RecordedMeasure, RecordedStage, Report, read_report
from ecoflap.core.record.sweep_list import is_sweep, swept_runs
from ecoflap.core.text.numbers import mean

LEVEL_DIGITS = 6
"""Sparsities that agree in so many decimals are one level. A layer keeps a whole number of weights, and a count over
all layers is rounded once, so that two runs of one recipe's sparsity may differ behind that."""


@dataclass(frozen=True)
class ComparedRun:
    """Holds a finished run beside others.

    :param name: Its folder's name, or the whole path where two have the same.
    :param method: What runs of several seeds and sparsities have in common.
    :param taken_over: What another run had found already (``scores``, ``dense evaluation``): the time that this took
        is not among this run's.
    :param contents: What it has read that others have not whose recipe says the same, in eight digits.
    """

    name: str
    folder: Path
    method: str
    report: Report
    taken_over: tuple[str, ...]
    contents: Mapping[str, str]

    @property
    def seed(self) -> int:
        """Give the recipe's seed."""
        return self.report.recipe.seed

    @property
    def seeds(self) -> frozenset[tuple[str, Any]]:
        """Give all its seeds: runs of one method, one sparsity and the same seeds are one run made twice."""
        return seeds_of(self.report.recipe.plain())

    @property
    def sparsity(self) -> float:
        """Give the share of the prunable weights that went."""
        return self.report.sparsity

    @property
    def level(self) -> float:
        """Give the sparsity by which runs are put together, rounded to :data:`LEVEL_DIGITS`."""
        return round(self.sparsity, LEVEL_DIGITS)

    @property
    def dense(self) -> Mapping[str, RecordedMeasure]:
        """Give the dense model's measures by name."""
        return self.report.measures.dense

    @property
    def pruned(self) -> Mapping[str, RecordedMeasure]:
        """Give the pruned model's measures by name."""
        return self.report.measures.pruned

    @cached_property
    def pruned_model(self) -> Mapping[str, str] | None:
        """Give what tells its pruned model from any other; None where that was not kept."""
        return RunFolder(self.folder).read_fingerprints().get(PRUNED_MODEL)

    @cached_property
    def stages(self) -> tuple[RecordedStage, ...]:
        """Give its stages but for exports: more of these may be made at any time, and the method is the same."""
        return tuple(stage for stage in self.report.stages if not stage.is_export)

    @property
    def seconds(self) -> float:
        """Add up how long its stages took, over all its processes."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory(self) -> int:
        """Give the most bytes that it held in one of them, libraries included."""
        return max((stage.peak_memory for stage in self.stages), default=0)


@dataclass(frozen=True)
class RunGroup:
    """Holds the runs of one method and sparsity. They differ in their seeds, unless one was made more than once."""

    method: str
    sparsity: float
    runs: tuple[ComparedRun, ...]

    @property
    def by_seeds(self) -> list[list[ComparedRun]]:
        """Put runs with the same seeds together, which say nothing of how far seeds spread."""
        found: dict[frozenset[tuple[str, Any]], list[ComparedRun]] = {}
        for run in self.runs:
            found.setdefault(run.seeds, []).append(run)
        return list(found.values())

    @property
    def is_one_model(self) -> bool:
        """Say whether its seeds all have pruned to the same bits."""
        first = self.runs[0].pruned_model
        return len(self.by_seeds) > 1 and bool(first) and all(run.pruned_model == first for run in self.runs)

    def values(self, metric: str) -> list[float]:
        """Return a measure of the pruned models, one value for each seed that has it."""
        found = ([run.pruned[metric].value for run in runs if metric in run.pruned] for runs in self.by_seeds)
        return [mean(values) for values in found if values]


@dataclass(frozen=True)
class DenseMeasure:
    """Holds a measure of the dense model over all runs.

    :param measure: As the first run has it.
    """

    measure: RecordedMeasure
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Comparison:
    """Holds the runs that are compared.

    :param unfinished: Runs of a sweep that have no report, and are left out.
    """

    runs: tuple[ComparedRun, ...]
    unfinished: tuple[Path, ...] = field(default=())

    @property
    def metrics(self) -> list[str]:
        """Name all measures."""
        return list(dict.fromkeys(name for run in self.runs for name in run.pruned))

    @property
    def exports(self) -> list[str]:
        """Name all exports."""
        return list(dict.fromkeys(name for run in self.runs for name in run.report.export_bytes))

    @property
    def towers(self) -> list[str]:
        """Name all towers."""
        return list(dict.fromkeys(tower for run in self.runs for tower in run.report.towers))

    @cached_property
    def groups(self) -> list[RunGroup]:
        """Put runs together by method, in the order of the runs, and by sparsity, from the smallest on."""
        found: dict[str, dict[float, list[ComparedRun]]] = {}
        for run in self.runs:
            found.setdefault(run.method, {}).setdefault(run.level, []).append(run)
        return [
            RunGroup(method, level, tuple(sorted(runs, key=lambda run: run.seed)))
            for method, levels in found.items()
            for level, runs in sorted(levels.items())
        ]

    @cached_property
    def has_seeds(self) -> bool:
        """Say whether any runs are seeds of each other."""
        return any(len(group.by_seeds) > 1 for group in self.groups)

    def dense(self, metric: str) -> DenseMeasure | None:
        """Return a measure of the dense model; None where no run has it."""
        found = [run.dense[metric] for run in self.runs if metric in run.dense]
        values = [measure.value for measure in found]
        return DenseMeasure(found[0], mean(values), min(values), max(values)) if found else None


def compared(paths: Sequence[str | PathLike[str]]) -> Comparison:
    """Compare the runs of these folders; a sweep's folder stands for all its finished runs.

    :raises EcoflapError: For a path that is neither a finished run nor a sweep with one.
    """
    given: dict[Path, str] = {}
    seen: set[Path] = set()
    unfinished: list[Path] = []
    for path in map(Path, paths):
        for folder, method in _runs_of(path):
            if is_sweep(path) and not RunFolder(folder).report.is_file():
                unfinished.append(folder)
            elif folder.resolve() not in seen:  # one run may be named in two ways
                seen.add(folder.resolve())
                given[folder] = method
    if not given and unfinished:
        require_finished(unfinished[0])
    folders = [require_finished(folder) for folder in given]
    reports = [read_report(folder.report) for folder in folders]
    contents = unlike_contents(list(zip(folders, reports, strict=True)))
    methods = method_names(list(given.values()), reports, list(map(without_drawn, contents)))
    facts = zip(_run_names(list(given)), folders, methods, reports, contents, strict=True)
    runs = [
        ComparedRun(name, folder.path, method, report, tuple(folder.taken_over()), own)
        for name, folder, method, report, own in facts
    ]
    return Comparison(tuple(runs), tuple(unfinished))


def _runs_of(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield each run's folder, and its method's name where a sweep gives one."""
    if is_sweep(path):
        yield from ((path / run["folder"], run["method"]) for run in swept_runs(path))
    else:
        yield path, ""


def _run_names(paths: Sequence[Path]) -> list[str]:
    """Return the folders' names, or their paths where two have the same name."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, by n - 1; None for a single one."""
    return stdev(values) if len(values) > 1 else None
