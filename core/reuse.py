"""Taking over what another run found, where everything it depends on is the same."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError
from ecoflap.core.files import read_lines
from ecoflap.core.part import Part
from ecoflap.core.recipe_model import Recipe
from ecoflap.core.run import RunFolder, read_json
from ecoflap.core.strict_yaml import read_yaml

SCORES_DEPEND_ON = ("model", "seed", "score", "calibration", "towers")


def found_scores(recipe: Recipe, fingerprints: Mapping[str, Any], own: Path) -> Path | None:
    """The scores of a run of ``reuse:`` with the same scorer, data, model and seed."""
    for folder in _alike(recipe, fingerprints, own, SCORES_DEPEND_ON, list(fingerprints)):
        if folder.plan.is_file() and folder.scores.is_file():
            return folder.scores
    return None


def found_measures(
    recipe: Recipe, fingerprints: Mapping[str, Any], own: Path, evaluator: Part
) -> dict[str, Any] | None:
    """A line of a run of ``reuse:`` that evaluated the same dense model with the same evaluator."""
    for folder in _alike(recipe, fingerprints, own, ("model",), ["model"]):
        line = evaluation_in(folder, "dense", evaluator)
        if line is not None:
            return line
    return None


def evaluation_in(folder: RunFolder, stage: str, evaluator: Part) -> dict[str, Any] | None:
    wanted = (stage, evaluator.plain())
    lines = read_lines(folder.evaluations)
    return next((line for line in lines if (line["stage"], line["evaluator"]) == wanted), None)


def _alike(
    recipe: Recipe, fingerprints: Mapping[str, Any], own: Path, keys: Sequence[str], prints: Sequence[str]
) -> Iterator[RunFolder]:
    for path in recipe.reuse:
        folder = RunFolder(path)
        if path == own:
            continue
        if not folder.recipe.is_file():
            raise RunError(f"reuse: {path} is no run folder: it has no recipe.yaml")
        other = read_yaml(folder.recipe.read_text("utf-8"), str(folder.recipe)).value
        before = read_json(path / "fingerprints.json")
        same_recipe = all(other.get(key) == recipe.plain().get(key) for key in keys)
        if same_recipe and all(before.get(what) == fingerprints[what] for what in prints):
            yield folder
