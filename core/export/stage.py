"""Do the export stage: write what a recipe exports and its run folder does not have yet."""

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Provenance
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.export.exports import export, export_names, is_exported, origin_of, weight_bytes
from ecoflap.core.export.surroundings import is_weights
from ecoflap.core.guards.left_as_given import ChangedModelError
from ecoflap.core.planning.plan import Plan
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.sealing.sums import read_sums


def provenance_of(folder: RunFolder, recipe: Mapping[str, Any], plan: Plan, measures: Mapping[str, Any]) -> Provenance:
    """Say what a run knows of the model that it exports.

    :param recipe: The run's, as plain values.
    :param measures: By stage and name.
    """
    source, dense = recipe["model"]["source"], folder.read_fingerprints().get("model", {})
    return Provenance(source, recipe, plan.sparsity_by_tower(), plan.sparsity, measures, dense)


def missing_exports(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Name the exports whose files are not all there."""
    return [name for name, spec in _by_name(recipe).items() if not is_exported(folder.exports, name, spec)]


def export_all(
    folder: RunFolder, recipe: Recipe, names: Sequence[str], pruned: PrunedModel, log: RunLog
) -> dict[str, EcoflapError]:
    """Write the exports of these names, each timed as a stage of its own; one that is refused stops none behind it.

    :param pruned: The model with its masks, as they are read back from the run folder.
    :return: Why some were refused, by their names.
    """
    specs = _by_name(recipe)
    origin = origin_of(folder, recipe.model.source, pruned.model) if names else None
    refused: dict[str, EcoflapError] = {}
    for name in names:
        try:
            with log.stage(f"export {name}"):
                for sentence in export(folder.exports, name, specs[name], pruned, origin):
                    log.note(f"{specs[name].use}: {sentence}")
        except ChangedModelError as error:
            return {**refused, name: error, **_not_begun(name, names[names.index(name) + 1 :])}
        except EcoflapError as error:
            refused[name] = error
    return refused


def _not_begun(changing: str, behind: Iterable[str]) -> dict[str, EcoflapError]:
    """Say of exports why they are not written: an exporter before them has changed the model in memory."""
    said = f"it was not begun, for {changing} before it has changed the model in memory: mend or leave out {changing}"
    return {name: RunError(said) for name in behind}


def ended_by(folder: RunFolder, recipe: Recipe, refused: Mapping[str, EcoflapError]) -> RunError:
    """Make the error of a run of which nothing is missing but exports: why each is, and the ways on.

    A :class:`RunError`, as of a full disk, says what to do: what was asked for would be as it was without it.
    """
    specs, run = _by_name(recipe), quote(str(folder.path))
    problems: list[str] = []
    unlike: list[int] = []  # those that ask for another export
    for name, error in refused.items():
        problems += [f"export {name}: {problem}" for problem in error.problems]
        problems[-1] = f"{problems[-1].rstrip('.')}. All else of the run is kept"
        if not isinstance(error, RunError):
            to = f"{specs[name].use}{' --allow-code' if ':' in specs[name].use else ''}"
            problems[-1] += f". `ecoflap export {run} --to {to} --set …` writes it by other parameters"
            unlike.append(len(problems) - 1)
    if unlike:
        trust = " --allow-code" if recipe.code() else ""
        way = f"`{folder.command}{trust} --set export=…` ends the run with what you name there"
        problems[unlike[-1]] += f"; {way}"
    return RunError(*problems)


def _by_name(recipe: Recipe) -> dict[str, PartSpec]:
    return dict(zip(export_names(recipe.export), recipe.export, strict=True))


def exported_bytes(folder: RunFolder, names: Iterable[str]) -> dict[str, int]:
    """Count the bytes of the weights in ``model/`` and, by name, in each export."""
    exports = {name: weight_bytes(folder.exports, name) for name in names}
    listed = read_sums(folder.model) if folder.model.is_dir() else ()
    weights = [folder.model / name for name in listed if is_weights(name)]
    return {"model": sum(file.stat().st_size for file in weights), **exports}
