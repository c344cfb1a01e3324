"""Do the export stage: write what a recipe exports and its run folder does not have yet."""

from collections.abc import Mapping
from typing import Any

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Provenance
from ecoflap.core.export.exports import export, export_names, is_exported, manifests, origin_of, weight_bytes
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import Manifest
from ecoflap.core.record.run_log import RunLog


def provenance_of(folder: RunFolder, recipe: Recipe, plan: Plan, measures: Mapping[str, Any]) -> Provenance:
    """Say what a run knows of the model that it exports.

    :param measures: By stage and name.
    """
    source, towers, dense = recipe.model.source, plan.sparsity_by_tower(), folder.read_fingerprints().get("model", {})
    return Provenance(source, recipe.plain(), towers, plan.sparsity, measures, dense)


def missing_exports(folder: RunFolder, recipe: Recipe) -> list[str]:
    """Name the exports whose files are not all there."""
    specs = zip(export_names(recipe.export), recipe.export, strict=True)
    return [name for name, spec in specs if not is_exported(folder.exports, name, spec)]


def export_all(folder: RunFolder, recipe: Recipe, names: list[str], pruned: PrunedModel, log: RunLog) -> None:
    """Write the exports of these names, each timed as a stage of its own.

    :param pruned: The model with its masks, as they are read back from the run folder.
    """
    specs = dict(zip(export_names(recipe.export), recipe.export, strict=True))
    origin = origin_of(folder, recipe.model.source, pruned.model) if names else None
    for name in names:
        with log.stage(f"export {name}"):
            for sentence in export(folder.exports, name, specs[name], pruned, origin):
                log.note(f"{specs[name].use}: {sentence}")


def exported_bytes(folder: RunFolder, recipe: Recipe) -> dict[str, int]:
    """Count the bytes of the weights in ``model/`` and, by name, in each export."""
    exports = {name: weight_bytes(folder.exports / name) for name in export_names(recipe.export)}
    return {"model": weight_bytes(folder.model), **exports}


def exported_manifests(folder: RunFolder, recipe: Recipe) -> dict[str, Manifest]:
    """Read the manifest of each export that is there, by its name."""
    return manifests(folder.exports, export_names(recipe.export))
