"""Do ``ecoflap export``: write another file of a run whose model is pruned, from what it left."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.answers import shown
from ecoflap.core.contracts.events import RunFinished, RunStarted
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Batch
from ecoflap.core.disk.paths import from_here
from ecoflap.core.errors import RecipeError, RunError
from ecoflap.core.export.exports import export_names, is_exported, is_recorded, manifests
from ecoflap.core.export.stage import export_all, exported_bytes, provenance_of
from ecoflap.core.machine.arithmetic import not_cast
from ecoflap.core.model.mapped_weights import mapped_beside
from ecoflap.core.model.source import open_source
from ecoflap.core.planning.plan_file import read_plan
from ecoflap.core.pruning.calibration import Calibration
from ecoflap.core.recipe.defaults import PRUNED_ANYHOW
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.recipe.overrides import Assignment, read_assignment
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import CalibrationKeys, Recipe
from ecoflap.core.record.evaluations import STAGES, Evaluation, measures_of
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import CALIBRATION_DATA, held_in_by
from ecoflap.core.record.open_run import open_run, require_pruned, unfinished
from ecoflap.core.record.readback import masks_as_planned
from ecoflap.core.record.recorded_recipe import RecordedRecipe, is_recordable
from ecoflap.core.record.report import Report, check_lines, check_recipe, read_report, write_report
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.observers import Observers
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.sealing.sealed_text import write_sealed_text
from ecoflap.core.text.strict_yaml import Document, Place, write_yaml

_ASKED = ("version", "seed", "model", "calibration", "evaluate", "export")
"""Keys of a recipe of which an export asks something; all others say how a model is pruned, which is over by then."""


@dataclass(frozen=True)
class _Wanted:
    """Holds what is exported of a run.

    :param recipe: The run's with the export; where a part is gone that it was pruned by, without any of those.
    :param name: The export's folder.
    :param plain: The run's recipe with the export, as plain values.
    :param text: The same as ``recipe.yaml`` has it.
    :param is_known: Whether the run's recipe had it before.
    """

    recipe: Recipe
    name: str
    plain: Mapping[str, Any]
    text: str
    is_known: bool


def export_run(
    run: Path | str,
    to: str | Mapping[str, Any],
    *,
    set_: Sequence[str] = (),
    registry: Registry | None = None,
    allow_code: bool = False,
    accept_change: bool = False,
    overwrite: bool = False,
) -> Path:
    """Export a run's pruned model; neither the model it was pruned from nor the pruner need be there any more.

    A run of which nothing is missing but exports, as where one was refused, need not be finished. It still is not
    afterwards: its own ``recipe.yaml``, which has the new export in the place of the one of its kind that was refused,
    run in the same folder, writes the report.

    :param run: The run folder.
    :param to: An exporter's name, or ``{use: name, parameter: value}``.
    :param set_: Its parameters like ``--set``, such as ``weights=coo``.
    :param allow_code: Follow the import paths of the run's own recipe, and that of ``to``. Otherwise that of a part
        that pruned is left alone, and any other refused.
    :param accept_change: Export although the calibration data, where the exporter looks at them, are others now, which
        is refused otherwise.
    :param overwrite: Replace an export that is there already.
    :return: The folder with the files, in the run's ``exports/``.
    :raises EcoflapError: Where the model is not pruned and evaluated yet, the exporter or a parameter is unknown, or it
        cannot export the model.
    """
    if not isinstance(to, str | Mapping):
        raise RecipeError(f"to is {shown(to)}; it is an exporter's name, or {{use: name, parameter: value}}")
    registry = (registry or load_registry()).trusting(allow_code)
    folder = require_pruned(from_here(run))
    # Before its recipe is read, to which another export may add its own.
    elsewhere = "copy the run to where you may write, and export the copy"
    with not_cast(), open_run(folder.path, fresh=False, elsewhere=elsewhere):
        wanted = _with_export(folder, to, set_, registry)
        recipe, name = wanted.recipe, wanted.name
        is_there = is_recorded(folder.exports, name) and not overwrite
        if is_there and not _was_cut_off(folder, wanted):
            raise RunError(
                f"{folder.exports / name} is there already. Say --overwrite, or overwrite=True from Python, to have it "
                f"written anew, or move it away."
            )
        log = RunLog(folder, Observers(registry.observers()))
        report = read_report(folder.report) if folder.report.is_file() else None
        measures = _evaluated(folder, recipe) if report is None else _reported(folder, report)
        log.emit(RunStarted(folder.path, ("export",)))
        pruned = _pruned(folder, wanted, measures, registry, Reading(folder, log, accept_change))
        if report is not None:  # what is damaged of another export is told before anything is written
            _exported(folder, recipe, but=name)
        missing = [] if is_there else [name]
        for refused in export_all(folder, recipe, missing, pruned, log).values():
            raise refused
        report = None if report is None else _written_anew(report, folder, wanted)
        write_sealed_text(folder.recipe, wanted.text)
        if report is not None:
            log.emit(RunFinished(folder.path, report))
    return folder.exports / name


def _was_cut_off(folder: RunFolder, wanted: _Wanted) -> bool:
    """Say whether an export is whole, and a process that was killed behind it has not told the run's recipe of it."""
    part = wanted.recipe.export[export_names(wanted.recipe.export).index(wanted.name)]
    return not wanted.is_known and is_exported(folder.exports, wanted.name, part)


def _reported(folder: RunFolder, report: Report) -> Mapping[str, Any]:
    check_lines(folder, report)
    check_recipe(folder, report)
    return report.measures.model_dump()


def _evaluated(folder: RunFolder, recipe: Recipe) -> Mapping[str, Any]:
    """Give what a report would say that evaluators found, by stage and name: model cards have it, whenever written.

    :raises RunError: Where one has not looked at the pruned model yet.
    """
    evaluations = tuple(map(Evaluation, recipe.evaluate))
    left = [one.evaluator.use for one in evaluations if not all(one.is_done(folder.evaluations, at) for at in STAGES)]
    if left:
        by = " and ".join(left)
        raise unfinished(folder, f"its model was not evaluated yet by {by} with the data that are there now")
    return measures_of(folder.evaluations, evaluations)


def _with_export(folder: RunFolder, to: str | Mapping[str, Any], set_: Sequence[str], registry: Registry) -> _Wanted:
    """Give the run's recipe with an export, and its folder's name.

    Where there was none like it, it is the last one; in a run that is not finished it takes the place of one of its
    kind that was refused.
    """
    wanted = {"use": to} if isinstance(to, str) else dict(to)
    written = folder.read_recipe()
    file, before = folder.recipe, written.get("export") or []
    plain = _read_alone(file, wanted, set_, registry).plain()
    parts = list(before) if isinstance(before, list) else [before]
    is_known = plain in parts
    if not is_known:
        at = len(parts) if folder.report.is_file() else _refused(folder, registry, plain["use"])
        parts[at : at + 1] = [plain]
    recipe, refusal = _read(file, [_exporting(parts)], registry)
    name = export_names(recipe.export)[parts.index(plain)]
    if refusal is None:
        return _Wanted(recipe, name, recipe.plain(), recipe.dump(), is_known)
    whole = {**written, "export": recipe.plain()["export"]}
    if not is_recordable(whole):  # no run has written it so
        raise refusal
    kept = _comments(file.read_text("utf-8")) or _comments(recipe.dump())
    return _Wanted(recipe, name, whole, kept + write_yaml(whole), is_known)


def _read(file: Path, sets: Sequence[Assignment], registry: Registry) -> tuple[Recipe, RecipeError | None]:
    """Read the recipe of a run; with what was pruned by, or with why that cannot be read.

    A part that it was pruned by may be gone, or not be trusted. Then the recipe is read as though another one had
    pruned, for nothing is asked of it any more.
    """
    try:
        return load_recipe(file, set_=sets, registry=registry, in_memory=True), None
    except RecipeError as refusal:
        anyhow = {**dict.fromkeys(key for key in Recipe.model_fields if key not in _ASKED), **PRUNED_ANYHOW}
        others = [Assignment(key, Document(value, Place(key))) for key, value in anyhow.items()]
        return load_recipe(file, set_=[*sets, *others], registry=registry, in_memory=True), refusal


def _comments(text: str) -> str:
    """Give the comment that a recipe begins with."""
    return "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def _refused(folder: RunFolder, registry: Registry, use: str) -> int:
    """Give the place of the first export by an exporter that is not there, or the one behind all of them."""
    exports = _read(folder.recipe, [], registry)[0].export
    named = enumerate(zip(export_names(exports), exports, strict=True))
    places = (at for at, (name, part) in named if part.use == use and not is_recorded(folder.exports, name, part))
    return next(places, len(exports))


def _read_alone(file: Path, wanted: Mapping[str, Any], set_: Sequence[str], registry: Registry) -> PartSpec:
    """Read an exporter with its parameters as if it were the recipe's only one; messages have what was typed."""
    try:
        sets = [_exporting([wanted]), *(read_assignment(text, below="export.0.") for text in set_)]
        return _read(file, sets, registry)[0].export[0]
    except RecipeError as error:
        raise RecipeError(*(problem.replace(": export.0.", ": ", 1) for problem in error.problems)) from error


def _exporting(parts: Sequence[Any]) -> Assignment:
    return Assignment("export", Document(parts, Place("export")))


@dataclass(frozen=True)
class Reading:
    """Reads the calibration data of a finished run once more.

    :param accept: Take them although they are others now.
    """

    folder: RunFolder
    log: RunLog
    accept: bool

    def batches(self, keys: CalibrationKeys, seed: int, adapter: Adapter, model: nn.Module) -> Sequence[Batch]:
        """Give the batches, from where the run's recipe says they are.

        :param seed: The recipe's.
        :raises RunError: Where they are not those that the model was pruned by.
        """
        note, what = self.log.note_of(keys.data.use), CALIBRATION_DATA
        data = Calibration.read(keys, seed, adapter, model, note)
        now = data.fingerprint(model)
        before = self.folder.read_fingerprints().get(what, now)
        if before != now and not self.accept:
            raise RunError(
                f"{self.folder.path} was pruned by another {what} than is there now ({keys.data.use}). Put it back, or "
                f"export by what is there now with --accept-change"
            )
        if before != now:
            self.log.note(f"the {what} of this export are others than it was pruned by, which was accepted")
        return data.batches(model)


def _pruned(
    folder: RunFolder, wanted: _Wanted, measures: Mapping[str, Any], registry: Registry, reading: Reading
) -> PrunedModel:
    """Load the pruned model of a run, with its masks and what is known of it."""
    recipe = wanted.recipe
    if not folder.is_pruned:
        gone = "its model is" if folder.masks.is_file() else f"{folder.masks.name} is"
        raise RunError(f"{folder.path}: {gone} gone. Run its recipe again")
    folder.check_model()
    source = open_source(str(folder.model.absolute()), Path.cwd())
    adapter = recipe.model.named_adapter() or adapter_for(source, registry)
    offloaded = recipe.model.offload == "disk"
    with mapped_beside(folder.path) if offloaded else nullcontext() as mapped:
        model = adapter.load(replace(source, mapped=mapped), None, "cpu")
    plan = read_plan(folder.plan)
    masks, known = masks_as_planned(folder.masks, plan), provenance_of(folder, wanted.plain, plan, measures)
    keys = recipe.calibration
    batches = None if keys is None else partial(reading.batches, keys, recipe.seed, adapter, model)
    held_in = held_in_by(folder.read_fingerprints())
    return PrunedModel(model, adapter, masks, known, batches, offloaded=offloaded, held_in=held_in)


def _exported(folder: RunFolder, recipe: Recipe, but: str = "") -> dict[str, Any]:
    """Give what a report says of exports.

    :param but: One that is left out, for it is to be written anew.
    :raises EcoflapError: Where the record or the manifest of one is damaged.
    """
    names = [name for name in export_names(recipe.export) if name != but]
    return {"bytes": exported_bytes(folder, names), "exports": manifests(folder.exports, names)}


def _written_anew(before: Report, folder: RunFolder, wanted: _Wanted) -> Report:
    """Write the report with what the folder has now, and return it."""
    recipe = wanted.recipe
    now = {
        "recipe": RecordedRecipe.of(wanted.plain),
        **_exported(folder, recipe),
        "warnings": tuple(folder.warnings()),
        "lines": folder.last_seals(),
    }
    report = before.model_copy(update=now)
    write_report(folder, report)
    return report
