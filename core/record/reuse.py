"""Find what another run found already and this one may take over, because all that it depends on is the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import EcoflapError
from ecoflap.core.machine.part_code import code_of_parts, digests_of
from ecoflap.core.model.source import are_other_weights
from ecoflap.core.planning.plan_file import read_scores_of
from ecoflap.core.recipe.differences import is_within
from ecoflap.core.recipe.schema import Recipe, may_change, scores_depend_on
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import CALIBRATION_DATA, Identity


def strangers(recipe: Recipe, own: Path | None) -> Iterator[str]:
    """Say which folders that ``reuse:`` names hold no run; the run's own may be among them, begun or not."""
    for path in recipe.reuse:
        if path != own and not RunFolder(path).is_ours:
            why = "no run was begun there" if RunFolder(path).recipe.is_file() else "it has no recipe.yaml"
            yield f"reuse: {path} is no run folder: {why}."


def of_other_models(recipe: Recipe, model: Mapping[str, str]) -> Iterator[str]:
    """Say which parts take something over of a run of another model, a sentence for each such run.

    Nothing is said of a run that does not tell of which model it is, or whose record of it cannot be read.

    :param model: The fingerprint of the recipe's.
    """
    told: set[Path] = set()
    for place, spec in recipe.specs():
        where = recipe.allocated_at if place == "allocate" else place
        for folder in filter(None, map(_run_around, spec.options.takes_over())):
            source = None if folder.path in told else _other_source(folder, model)
            if source is not None:
                told.add(folder.path)
                yield (
                    f"{where}: {folder.path} is a run of a model in other files, {source}, and {spec.use} takes over "
                    f"what was found for that. If it is another model and not meant, name a run of "
                    f"{recipe.model.source}"
                )


def _other_source(folder: RunFolder, model: Mapping[str, str]) -> str | None:
    """Give the source of a run's model, where its weights are in other files than these; None where nothing tells."""
    with suppress(EcoflapError):
        if are_other_weights(folder.read_fingerprints().get("model", model), model):
            return str(folder.read_recipe()["model"]["source"])
    return None


def _run_around(path: Path) -> RunFolder | None:
    """Give the run that a path is the folder of, or that it lies in, as deep as an export's files do."""
    return next((folder for folder in map(RunFolder, (path, *path.parents[:3])) if folder.is_ours), None)


def found_scores(recipe: Recipe, fingerprints: Mapping[str, Any], adapter: Adapter, own: Path) -> Path | None:
    """Find the scores of a run of ``reuse:`` with the same scorer, data, model and seed, by the same code.

    There are none for a recipe of rounds, of which each scores the model as it is then. A run whose files of numbers of
    single weights were deleted is passed over.
    """
    if recipe.rounds is not None:
        return None
    keys = _score_keys(recipe.plain())
    seen = {what: one for what, one in fingerprints.items() if what != CALIBRATION_DATA or "calibration" in keys}
    code = code_of_scores(recipe) | digests_of(code_of_parts([type(adapter)]))
    for folder in _alike(recipe, seen, own, keys, code):
        if folder.plan.is_file() and folder.scores.is_file():
            way_out = f"Restore the file, or take {folder.path} out of reuse:"
            found = read_scores_of(folder.plan, folder.scores, way_out)
            if all(one.file.is_file() for one in found.weight_scores.values()):
                found.check_files(way_out)
                return folder.scores
    return None


def found_evaluation(
    recipe: Recipe, fingerprints: Mapping[str, Any], adapter: Adapter, own: Path, evaluation: Evaluation
) -> Path | None:
    """Find the lines of a run of ``reuse:`` that evaluated the same dense model with the same evaluator.

    One whose file of what is remembered of the dense model was deleted is passed over.
    """
    for folder in _alike(recipe, fingerprints, own, ("model",), digests_of(code_of_parts([type(adapter)]))):
        if evaluation.can_be_taken_over(folder.evaluations):
            return folder.evaluations
    return None


def lasting_parts(recipe: Recipe) -> Iterator[Callable[..., Any]]:
    """Yield what makes the parts whose code all that a run finds depends on; evaluators and exporters may change."""
    yield from (spec.factory for place, spec in recipe.specs() if not is_within(place, may_change()))


def code_of_scores(recipe: Recipe) -> dict[str, str]:
    """Give the digest of all code that scores depend on and that comes with something else than ecoflap."""
    keys = _score_keys(recipe.plain())
    return digests_of(code_of_parts(spec.factory for place, spec in recipe.specs() if place.partition(".")[0] in keys))


def _alike(
    recipe: Recipe, fingerprints: Mapping[str, Any], own: Path, keys: Sequence[str], code: Mapping[str, str]
) -> Iterator[RunFolder]:
    wanted = _comparable(recipe.plain())
    for folder in map(RunFolder, recipe.reuse):
        if folder.path == own or not folder.fingerprints.is_file():
            continue
        other = _comparable(folder.read_recipe())
        before = folder.read_fingerprints()
        is_alike = all(other.get(key) == wanted.get(key) for key in keys) and fingerprints.items() <= before.items()
        if is_alike and Identity(folder).is_all_by(code):
            yield folder


def what_scores_depend_on(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of a plain recipe that scores depend on; the files it names count too.

    What pruners look at is not among them where the scorer has data of its own.
    """
    return {key: value for key, value in _comparable(recipe).items() if key in _score_keys(recipe)}


def _score_keys(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    has_own = (recipe.get("score") or {}).get("calibration") is not None
    return tuple(key for key in scores_depend_on() if not (has_own and key == "calibration"))


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing about what was found: what shares a sparsity, and where things were kept."""
    model, calibration = (recipe.get(key) or {} for key in ("model", "calibration"))
    score = _without(recipe.get("score") or {}, "granularity")
    if "calibration" in score:
        score["calibration"] = _without(score["calibration"], "keep")
    return {
        **recipe,
        "model": _without(_without(model, "offload"), "compute"),  # of which a fingerprint tells what came of it
        "calibration": _without(calibration, "keep"),
        "score": score,
    }


def _without(keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if key != name}
