"""``ecoflap export``: another file of a run that is finished, from what it left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.errors import RunError
from ecoflap.core.export.exports import export, export_names, manifests, origin_of, weight_bytes
from ecoflap.core.export.provenance import Provenance, attach_provenance
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.masks import attach
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder, open_run, read_json, require_finished
from ecoflap.core.record.readback import masks_as_planned
from ecoflap.core.record.report import write_report
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.text.strict_yaml import read_yaml


def export_run(
    run: Path | str,
    to: str | Mapping[str, Any],
    *,
    set_: Sequence[str] = (),
    registry: Registry | None = None,
) -> Path:
    """Export a finished run's model; the model it was pruned from need not be there any more.

    :param run: The run folder.
    :param to: An exporter's name, or ``{use: name, parameter: value}``.
    :param set_: Its parameters like ``--set``, such as ``weights=coo``.
    :return: The folder with the files, in the run's ``exports/``.
    :raises EcoflapError: Where the run is not finished, the exporter or a parameter is unknown, or it cannot export the
        model.
    """
    registry = registry or load_registry()
    folder = require_finished(Path(run))
    before = read_yaml(folder.recipe.read_text("utf-8"), str(folder.recipe)).value
    recipe = _with_export(before, to, set_, registry)
    with open_run(folder.path, fresh=False):
        name = export_names(recipe.export)[-1]
        _export(folder, recipe, name, registry)
        write_whole(folder.recipe, recipe.dump())
    return folder.exports / name


def _with_export(
    recipe: Mapping[str, Any], to: str | Mapping[str, Any], set_: Sequence[str], registry: Registry
) -> Recipe:
    """The run's recipe with one exporter more; one that is there already, with these parameters, is written anew."""
    wanted = {"use": to} if isinstance(to, str) else dict(to)
    alone = parse_recipe(
        {**recipe, "export": [wanted]},
        set_=[f"export.0.{item}" for item in set_],
        registry=registry,
        file="export",
        in_memory=True,
    )
    plain = alone.export[0].plain()
    others = [part for part in recipe.get("export") or [] if part != plain]
    return parse_recipe({**recipe, "export": [*others, plain]}, registry=registry, file="export", in_memory=True)


def _export(folder: RunFolder, recipe: Recipe, name: str, registry: Registry) -> None:
    if not folder.is_pruned:
        raise RunError(f"{folder.path}: its model is gone. Run its recipe again")
    source = open_source(str(folder.model.absolute()), Path.cwd())
    adapter = recipe.model.named_adapter() or adapter_for(source, registry)
    model = adapter.load(source, None, "cpu")
    plan, report = Plan.load(read_json(folder.plan)), read_json(folder.report)
    attach(model, masks_as_planned(folder.masks, plan))
    told = plan.sparsity_by_tower(), plan.sparsity, report["measures"]
    attach_provenance(model, Provenance(recipe.model.source, recipe.plain(), *told))
    origin = origin_of(folder, recipe.model.source, model)
    notes = export(folder.exports, name, recipe.export[-1], model, adapter, origin)
    for note in notes:
        folder.record_warning(f"{recipe.export[-1].use}: {note}")
    names = export_names(recipe.export)
    report["bytes"] = {"model": report["bytes"]["model"], **{n: weight_bytes(folder.exports / n) for n in names}}
    report["exports"] = manifests(folder.exports, names)
    report["warnings"] = folder.warnings()
    report["recipe"] = json.loads(json.dumps(recipe.plain()))
    write_report(folder, report)
