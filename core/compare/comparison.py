"""Finished runs side by side, as data: which method each is, what seeds are a mean of, and what else differs."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import stdev
from typing import Any

from ecoflap.core.record.folder import RunFolder, read_json, require_finished
from ecoflap.core.record.report import blocks_planned, is_scored, method_of
from ecoflap.core.record.reuse import what_scores_depend_on
from ecoflap.core.report.run_page import blocks_of
from ecoflap.core.sweep.runs import is_sweep, swept_runs
from ecoflap.core.text.numbers import mean

NOT_THE_METHOD = ("version", "seed", "sparsity", "reuse", "export")
"""Keys of a recipe in which runs of one method may differ."""
SEEDS = ("calibration.seed", "score.calibration.seed")
"""Of the data; seeds as well as the recipe's own is."""
FILES = {"model": "model", "calibration data": "calibration", "scoring data": "score"}
"""Fingerprints of a run, each with the key of the recipe that it belongs to."""


@dataclass(frozen=True)
class Compared:
    """A finished run.

    :param name: Its folder's, or the whole path where two are called the same.
    :param method: What runs of several seeds and sparsities have in common.
    :param stages: Of a run by itself: what it took over from another run counts as it did there.
    """

    name: str
    folder: Path
    method: str
    report: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]

    @property
    def seed(self) -> int:
        return int(self.report["recipe"]["seed"])

    @property
    def sparsity(self) -> float:
        return float(self.report["sparsity"])

    def measures(self, stage: str) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.report["measures"][stage]
        return found

    @property
    def seconds(self) -> float:
        return float(sum(stage["seconds"] for stage in self.stages))

    @property
    def peak_memory(self) -> int:
        return int(max((stage["peak_memory"] for stage in self.stages), default=0))

    @property
    def took_over(self) -> bool:
        return list(self.stages) != list(self.report["stages"])


@dataclass(frozen=True)
class Group:
    """Runs of one method and sparsity; they differ in their seeds."""

    method: str
    sparsity: float
    runs: tuple[Compared, ...]

    def values(self, metric: str) -> list[float]:
        found = (run.measures("pruned").get(metric) for run in self.runs)
        return [float(measure["value"]) for measure in found if measure is not None]


@dataclass(frozen=True)
class Comparison:
    """:param unfinished: Runs of a sweep that have no report."""

    runs: tuple[Compared, ...]
    unfinished: tuple[Path, ...] = field(default=())

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.measures("pruned")))

    @property
    def exports(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.report["bytes"] if name != "model"))

    @property
    def groups(self) -> list[Group]:
        """Method by method in the order of the runs, each from the smallest sparsity on."""
        methods = list(dict.fromkeys(run.method for run in self.runs))
        keys = {(methods.index(run.method), round(run.sparsity, 6)) for run in self.runs}
        return [Group(methods[at], sparsity, tuple(self._of(methods[at], sparsity))) for at, sparsity in sorted(keys)]

    def _of(self, method: str, sparsity: float) -> list[Compared]:
        found = [run for run in self.runs if run.method == method and round(run.sparsity, 6) == sparsity]
        return sorted(found, key=lambda run: run.seed)

    @property
    def has_seeds(self) -> bool:
        return any(len(group.runs) > 1 for group in self.groups)

    def dense(self, metric: str) -> Mapping[str, Any] | None:
        """A measure of the dense model: as the first run has it, with the smallest and the largest of all."""
        found = [run.measures("dense")[metric] for run in self.runs if metric in run.measures("dense")]
        values = [measure["value"] for measure in found]
        return {**found[0], "value": mean(values), "min": min(values), "max": max(values)} if found else None


def compared(paths: Sequence[Path]) -> Comparison:
    """The runs of these folders; a sweep's stands for all its finished runs.

    :raises EcoflapError: For a path that is neither a finished run nor a sweep with one.
    """
    named: dict[Path, str] = {}
    unfinished: list[Path] = []
    for path in paths:
        for folder, method in _runs_of(path):
            if is_sweep(path) and not RunFolder(folder).report.is_file():
                unfinished.append(folder)
            else:
                named.setdefault(folder, method)
    if not named and unfinished:
        require_finished(unfinished[0])
    reports = [read_json(require_finished(folder).report) for folder in named]
    methods = _methods(list(named.values()), reports)
    runs = [
        Compared(name, folder, method, report, tuple(report["stages"]))
        for name, folder, method, report in zip(distinct(list(named)), named, methods, reports, strict=True)
    ]
    return Comparison(tuple(_alone(run, runs) for run in runs), tuple(unfinished))


def _runs_of(path: Path) -> Iterator[tuple[Path, str]]:
    if is_sweep(path):
        yield from ((path / run["folder"], run["method"]) for run in swept_runs(path))
    else:
        yield path, ""


def distinct(paths: Sequence[Path]) -> list[str]:
    """The folders' names; their paths where two are called the same."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _methods(given: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """As the sweep names them, or after their parts; with a pattern, and with the keys in which namesakes differ."""
    bases = []
    for name, report in zip(given, reports, strict=True):
        asked = report["recipe"].get("sparsity")
        bases.append((name or method_of(report)) + (f" {asked}" if isinstance(asked, str) else ""))
    return told_apart(bases, [_of_the_method(report) for report in reports])


def _of_the_method(report: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what may differ, and without a score that nothing looked at."""
    left = NOT_THE_METHOD if is_scored(report) else (*NOT_THE_METHOD, "score")
    return {key: value for key, value in report["recipe"].items() if key not in left}


def told_apart(bases: Sequence[str], recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names, with what tells apart those that are the same: ``wanda (prune.compare=layer)``."""
    flats = [{key: value for key, value in flat(recipe).items() if key not in SEEDS} for recipe in recipes]
    names = []
    for base, own in zip(bases, flats, strict=True):
        same = [other for name, other in zip(bases, flats, strict=True) if name == base]
        told = ", ".join(f"{key}={own.get(key, 'not set')}" for key in varying(same))
        names.append(f"{base} ({told})" if told else base)
    return names


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Of nested mappings and lists, each value by its dotted path."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {} if value is None else {path: value}
    return {
        inside: found for key, inner in items for inside, found in flat(inner, f"{path}.{key}" if path else key).items()
    }


def varying(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which they differ; where a part was exchanged, not its parameters."""
    keys = dict.fromkeys(key for one in flats for key in one)
    differing = [key for key in keys if any(one.get(key) != flats[0].get(key) for one in flats)]
    parts = [key.removesuffix("use") for key in differing if key.endswith(".use")]
    return [key for key in differing if key.endswith(".use") or not key.startswith(tuple(parts))]


def _alone(run: Compared, runs: Sequence[Compared]) -> Compared:
    """With the stages that it left to another run, as they were where they took longest."""
    if not run.report["recipe"].get("reuse"):
        return run
    stages = {stage["stage"]: stage for stage in run.stages}
    if is_scored(run.report):
        _fill(stages, "score", run, runs, what_scores_depend_on)
    if run.measures("dense"):
        _fill(stages, "evaluate dense", run, runs, lambda recipe: [recipe["model"], recipe["evaluate"]])
    return replace(run, stages=tuple(stages.values()))


def _fill(
    stages: dict[str, Mapping[str, Any]],
    name: str,
    run: Compared,
    runs: Sequence[Compared],
    depends_on: Callable[[Mapping[str, Any]], Any],
) -> None:
    wanted = depends_on(run.report["recipe"])
    alike = [other for other in runs if depends_on(other.report["recipe"]) == wanted]
    found = [stage for other in alike for stage in other.report["stages"] if stage["stage"] == name]
    longest = max(found, key=lambda stage: float(stage["seconds"]), default=None)
    if longest is not None:
        stages[name] = longest


def what_differs(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """Beside methods, seeds and sparsities: by key, each value with the methods that have it.

    Recipes are looked at, files of the same name with other contents, machines and versions.
    """
    flats = [_circumstances(run) for run in comparison.runs]
    told: dict[str, dict[str, list[str]]] = {}
    for key in varying(flats):
        for run, one in zip(comparison.runs, flats, strict=True):
            methods = told.setdefault(key, {}).setdefault(str(one.get(key, "not set")), [])
            if run.method not in methods:
                methods.append(run.method)
    parts = {key: values for key, values in told.items() if key not in ("score.use", "allocate.use", "prune.use")}
    return parts | {f"contents of the {what}": values for what, values in _files(comparison).items()}


def _circumstances(run: Compared) -> dict[str, Any]:
    recipe = _of_the_method(run.report)
    score = recipe.get("score") or {"use": "nothing"}
    machine = {key: value for key, value in run.report["machine"].items() if key != "peak_gpu_memory"}
    told = flat({**recipe, "score": score, "machine": machine, "versions": run.report["versions"]})
    return {key: value for key, value in told.items() if key not in SEEDS}


def _files(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """Fingerprints that differ although the recipes read the same."""
    found: dict[str, dict[str, list[str]]] = {}
    for what, key in FILES.items():
        alike: dict[str, dict[str, list[str]]] = {}
        for run in comparison.runs:
            recipe = run.report["recipe"]
            prints = RunFolder(run.folder).fingerprints
            told = read_json(prints).get(what) if prints.is_file() else None
            if told is not None:
                digest = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
                known = alike.setdefault(json.dumps([recipe["model"], recipe.get(key)]), {})
                known.setdefault(digest, []).append(run.name)
        for digests in alike.values():
            if len(digests) > 1:
                found[what] = digests
    return found


def blocks_by_tower(run: Compared) -> dict[str, list[float]]:
    """By tower, the sparsity of each block; from the plan where a report is older than that."""
    blocks = run.report.get("blocks")
    if blocks is None:
        blocks = blocks_planned(read_json(RunFolder(run.folder).plan))
    return blocks_of(blocks)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds, by n - 1; None for one."""
    return stdev(values) if len(values) > 1 else None


def as_data(comparison: Comparison) -> dict[str, Any]:
    """What ``report.json`` of a comparison holds."""
    return {
        "version": 1,
        "runs": [_run_data(run) for run in comparison.runs],
        "dense": {name: comparison.dense(name) for name in comparison.metrics},
        "groups": [data for group in comparison.groups for data in _group_data(group, comparison.metrics)],
        "differs": what_differs(comparison),
        "unfinished": list(map(str, comparison.unfinished)),
    }


def _run_data(run: Compared) -> dict[str, Any]:
    report = run.report
    return {
        "folder": str(run.folder),
        "method": run.method,
        "seed": run.seed,
        "sparsity": run.sparsity,
        "asked": report["recipe"]["sparsity"],
        "measures": report["measures"]["pruned"],
        "dense": report["measures"]["dense"],
        "towers": report["towers"],
        "blocks": blocks_by_tower(run),
        "bytes": report["bytes"],
        "stages": report["stages"],
        "seconds": sum(stage["seconds"] for stage in report["stages"]),
        "seconds_alone": run.seconds,
        "peak_memory": run.peak_memory,
    }


def _group_data(group: Group, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    for metric in metrics:
        values = group.values(metric)
        if values:
            yield {
                "method": group.method,
                "sparsity": group.sparsity,
                "metric": metric,
                "n_seeds": len(values),
                "mean": mean(values),
                "sd": spread(values),
                "min": min(values),
                "max": max(values),
            }
