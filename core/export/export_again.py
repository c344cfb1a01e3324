"""Do ``ecoflap export``: write another file of a run that is finished, from what it left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.events import RunFinished
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Batch
from ecoflap.core.disk.sealed_text import write_sealed_text
from ecoflap.core.errors import RunError
from ecoflap.core.export.exports import export_names, is_recorded
from ecoflap.core.export.stage import export_all, exported_bytes, exported_manifests, provenance_of
from ecoflap.core.model.source import open_source
from ecoflap.core.pruning.calibration import Calibration
from ecoflap.core.pruning.plan_file import read_plan
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.recipe.overrides import Assignment
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder, open_run, require_finished
from ecoflap.core.record.readback import masks_as_planned
from ecoflap.core.record.recorded_recipe import RecordedRecipe
from ecoflap.core.record.report import Report, check_lines, read_report, write_report
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.observers import Observers
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.text.strict_yaml import Document, Place


def export_run(
    run: Path | str,
    to: str | Mapping[str, Any],
    *,
    set_: Sequence[str] = (),
    registry: Registry | None = None,
    allow_code: bool = False,
    overwrite: bool = False,
) -> Path:
    """Export a finished run's model; the model it was pruned from need not be there any more.

    :param run: The run folder.
    :param to: An exporter's name, or ``{use: name, parameter: value}``.
    :param set_: Its parameters like ``--set``, such as ``weights=coo``.
    :param allow_code: Follow the import paths of the run's own recipe, and that of ``to``, which are refused otherwise.
    :param overwrite: Replace an export that is there already.
    :return: The folder with the files, in the run's ``exports/``.
    :raises EcoflapError: Where the run is not finished, the exporter or a parameter is unknown, or it cannot export the
        model.
    """
    registry = (registry or load_registry()).trusting(allow_code)
    folder = require_finished(Path(run))
    recipe = _with_export(folder, to, set_, registry)
    name = export_names(recipe.export)[-1]
    if is_recorded(folder.exports, name) and not overwrite:
        raise RunError(
            f"{folder.exports / name} is there already. Say --overwrite, or overwrite=True from Python, to have it "
            f"written anew, or move it away."
        )
    with open_run(folder.path, fresh=False):
        log = RunLog(folder, Observers(registry.observers()))
        report = read_report(folder.report)
        check_lines(folder, report)
        export_all(folder, recipe, [name], _pruned(folder, recipe, report, registry, log), log)
        report = _written_anew(report, folder, recipe)
        write_sealed_text(folder.recipe, recipe.dump())
        log.emit(RunFinished(folder.path, report))
    return folder.exports / name


def _with_export(folder: RunFolder, to: str | Mapping[str, Any], set_: Sequence[str], registry: Registry) -> Recipe:
    """Give the run's recipe with one more export, the last; one with the same parameters is taken out of it before."""
    wanted = {"use": to} if isinstance(to, str) else dict(to)
    sets: list[str | Assignment] = [_exporting([wanted]), *(f"export.0.{item}" for item in set_)]
    file, before = folder.recipe, folder.read_recipe().get("export") or []
    plain = load_recipe(file, set_=sets, registry=registry, in_memory=True).export[0].plain()
    others = [part for part in (before if isinstance(before, list) else [before]) if part != plain]
    return load_recipe(file, set_=[_exporting([*others, plain])], registry=registry, in_memory=True)


def _exporting(parts: Sequence[Any]) -> Assignment:
    return Assignment("export", Document(parts, Place("export")))


def _pruned(folder: RunFolder, recipe: Recipe, report: Report, registry: Registry, log: RunLog) -> PrunedModel:
    """Load the pruned model of a run, with its masks and what its report knows of it."""
    if not folder.is_pruned:
        raise RunError(f"{folder.path}: its model is gone. Run its recipe again")
    folder.check_model()
    source = open_source(str(folder.model.absolute()), Path.cwd())
    adapter = recipe.model.named_adapter() or adapter_for(source, registry)
    model = adapter.load(source, None, "cpu")
    plan, measures = read_plan(folder.plan), report.measures.model_dump()
    masks, known = masks_as_planned(folder.masks, plan), provenance_of(folder, recipe, plan, measures)
    return PrunedModel(model, adapter, masks, known, _batches(recipe, adapter, model, log))


def _batches(recipe: Recipe, adapter: Adapter, model: nn.Module, log: RunLog) -> Callable[[], Sequence[Batch]] | None:
    """Give what reads the run's calibration data once more, from where its recipe says they are."""
    keys = recipe.calibration
    if keys is None:
        return None
    note = log.note_of(keys.data.use)
    return lambda: Calibration.read(keys, adapter, model, note).batches(model)


def _written_anew(before: Report, folder: RunFolder, recipe: Recipe) -> Report:
    """Write the report with what the folder has now, and return it."""
    now = {
        "recipe": RecordedRecipe.of(recipe),
        "bytes": exported_bytes(folder, recipe),
        "exports": exported_manifests(folder, recipe),
        "warnings": tuple(folder.warnings()),
        "lines": folder.last_seals(),
    }
    report = before.model_copy(update=now)
    write_report(folder, report)
    return report
