"""Taking over what another run found, where everything it depends on is the same."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.evaluations import Evaluator
from ecoflap.core.record.folder import RunFolder, read_json
from ecoflap.core.text.strict_yaml import read_yaml

SCORES_DEPEND_ON = ("model", "seed", "score", "calibration", "towers")


def strangers(recipe: Recipe, own: Path | None) -> Iterator[str]:
    """What ``reuse:`` names and is no run folder; the run's own may be among them, begun or not."""
    for path in recipe.reuse:
        if path != own and not RunFolder(path).recipe.is_file():
            yield f"reuse: {path} is no run folder: it has no recipe.yaml."


def found_scores(recipe: Recipe, fingerprints: Mapping[str, Any], own: Path) -> Path | None:
    """The scores of a run of ``reuse:`` with the same scorer, data, model and seed."""
    for folder in _alike(recipe, fingerprints, own, SCORES_DEPEND_ON):
        if folder.plan.is_file() and folder.scores.is_file():
            return folder.scores
    return None


def found_measures(
    recipe: Recipe, fingerprints: Mapping[str, Any], own: Path, evaluator: Evaluator
) -> dict[str, Any] | None:
    """A line of a run of ``reuse:`` that evaluated the same dense model with the same evaluator."""
    for folder in _alike(recipe, fingerprints, own, ("model",)):
        line = evaluator.line(folder.evaluations, "dense")
        if line is not None:
            return line
    return None


def _alike(recipe: Recipe, fingerprints: Mapping[str, Any], own: Path, keys: Sequence[str]) -> Iterator[RunFolder]:
    wanted = _comparable(recipe.plain())
    for folder in map(RunFolder, recipe.reuse):
        if folder.path == own or not folder.fingerprints.is_file():
            continue
        other = _comparable(read_yaml(folder.recipe.read_text("utf-8"), str(folder.recipe)).value)
        before = read_json(folder.fingerprints)
        if all(other.get(key) == wanted.get(key) for key in keys) and fingerprints.items() <= before.items():
            yield folder


def what_scores_depend_on(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of a plain recipe; the files it names count too."""
    return {key: value for key, value in _comparable(recipe).items() if key in SCORES_DEPEND_ON}


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What shares a sparsity says nothing about what was scored."""
    score = recipe.get("score") or {}
    return {**recipe, "score": {key: value for key, value in score.items() if key != "granularity"}}
