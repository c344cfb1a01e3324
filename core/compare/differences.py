"""Find in what runs differ beside methods, seeds and sparsities: keys, contents of files, machines, versions."""

from typing import Any, TypeAlias

from ecoflap.core.compare.comparison import ComparedRun, Comparison
from ecoflap.core.compare.methods import flat, recipe_of_method, varying, without_seeds

Differences: TypeAlias = dict[str, dict[str, list[str]]]
"""By key, each value with the methods or runs that have it."""

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
    return rest | _contents(comparison)


def _circumstances(run: ComparedRun) -> dict[str, Any]:
    recipe = recipe_of_method(run.report)
    score = recipe.get("score") or {"use": "nothing"}
    machine = {key: value for key, value in run.report.machine.items() if key != "peak_gpu_memory"}
    return without_seeds(flat({**recipe, "score": score, "machine": machine, "versions": run.report.versions}))


def _contents(comparison: Comparison) -> Differences:
    """Return what was read that differs although the recipes say the same."""
    found: Differences = {}
    for run in comparison.runs:
        for key, digest in run.contents.items():
            found.setdefault(key, {}).setdefault(digest, []).append(run.name)
    return found
