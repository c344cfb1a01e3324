"""Find in what runs differ beside methods, seeds and sparsities: keys, contents of files, machines, versions."""

import json
from hashlib import sha256
from typing import Any, TypeAlias

from ecoflap.core.compare.comparison import ComparedRun, Comparison
from ecoflap.core.compare.methods import flat, recipe_of_method, varying, without_seeds
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import CALIBRATION_DATA, SCORING_DATA

Differences: TypeAlias = dict[str, dict[str, list[str]]]
"""By key, each value with the methods or runs that have it."""

FILES = {"model": "model", CALIBRATION_DATA: "calibration", SCORING_DATA: "score"}
"""Fingerprints as a run names them (``RunData.fingerprints``), each with the key of the recipe whose files it is of:
where that key reads the same in two recipes, the contents should be the same too."""
PARTS = ("score.use", "allocate.use", "prune.use")
"""Keys that a method's name tells already: the parts that ``Report.method`` names."""


def what_differs(comparison: Comparison) -> Differences:
    """Return in what the runs differ: recipes, files of one name with other contents, machines and versions."""
    flats = [_circumstances(run) for run in comparison.runs]
    found: Differences = {}
    for key in varying(flats):
        for run, one in zip(comparison.runs, flats, strict=True):
            methods = found.setdefault(key, {}).setdefault(str(one.get(key, "not set")), [])
            if run.method not in methods:
                methods.append(run.method)
    rest = {key: values for key, values in found.items() if key not in PARTS}
    return rest | {f"contents of the {what}": values for what, values in _files(comparison).items()}


def _circumstances(run: ComparedRun) -> dict[str, Any]:
    recipe = recipe_of_method(run.report)
    score = recipe.get("score") or {"use": "nothing"}
    machine = {key: value for key, value in run.report.machine.items() if key != "peak_gpu_memory"}
    return without_seeds(flat({**recipe, "score": score, "machine": machine, "versions": run.report.versions}))


def _files(comparison: Comparison) -> Differences:
    """Return the fingerprints that differ although the recipes read the same."""
    found: Differences = {}
    for what, key in FILES.items():
        alike: Differences = {}
        for run in comparison.runs:
            digest = _digest(run, what)
            if digest is not None:
                recipe = run.report.recipe.plain()
                known = alike.setdefault(json.dumps([recipe["model"], recipe.get(key)]), {})
                known.setdefault(digest, []).append(run.name)
        for digests in alike.values():
            if len(digests) > 1:
                found.setdefault(what, {}).update(digests)
    return found


def _digest(run: ComparedRun, what: str) -> str | None:
    """Return eight digits of a fingerprint; None where the run has none of that."""
    prints = RunFolder(run.folder).read_fingerprints().get(what)
    return None if prints is None else sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()[:8]
