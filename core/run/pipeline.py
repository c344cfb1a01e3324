"""A run: load, check, evaluate, score, allocate, prune, refine, save, evaluate and export; each stage is resumable."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap.core.contracts.events import RunFailed, RunFinished, RunStarted
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.disk.paths import from_here
from ecoflap.core.errors import RecipeError, RunError
from ecoflap.core.export.exports import export_names, manifests
from ecoflap.core.export.stage import ended_by, export_all, exported_bytes, provenance_of
from ecoflap.core.machine.arithmetic import not_cast, whole_float32
from ecoflap.core.machine.environment import arithmetic, versions
from ecoflap.core.machine.part_code import code_of_parts
from ecoflap.core.planning.plan import Plan
from ecoflap.core.preparing.held_model import refuse_pruned_in_place, run_eagerly, uncompiled
from ecoflap.core.preparing.offload_problems import refuse_moved
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.preparing.seen_samples import seen_samples
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.differences import changes, is_within
from ecoflap.core.recipe.load import find_recipe, load_recipe, parse_recipe
from ecoflap.core.recipe.overrides import as_assignments
from ecoflap.core.recipe.schema import Recipe, may_change
from ecoflap.core.record.evaluations import STAGES, Evaluation, measures_of
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import FROM_PYTHON, Identity
from ecoflap.core.record.make_report import Outcome, make_report
from ecoflap.core.record.open_run import open_run
from ecoflap.core.record.readback import masks_as_planned
from ecoflap.core.record.report import Report, check_lines, check_recipe, read_report, write_report
from ecoflap.core.record.reuse import lasting_parts, of_other_models
from ecoflap.core.record.run_log import RunLog, SilentLog
from ecoflap.core.registry.observers import Observers
from ecoflap.core.registry.registry import Registry, load_registry
from ecoflap.core.run import stages
from ecoflap.core.run.adapter_check import check_adapter_on_data, is_to_be_checked
from ecoflap.core.run.data import RunData
from ecoflap.core.run.own_inputs import refuse_deleting_inputs
from ecoflap.core.run.rounds import after_rounds, rounds_ahead
from ecoflap.core.run.run_model import RunModel, held_in
from ecoflap.core.run.run_state import RunState, stage_of_round
from ecoflap.core.run.same_ranks import (
    check_enough_batches,
    check_same_asked,
    check_same_code,
    check_same_device,
    check_same_disk,
    check_same_evaluated,
    check_same_found,
    check_sendable,
    other_arithmetic,
    refuse_numbered_device,
)
from ecoflap.core.run.weights import nonzeros, zeros_before
from ecoflap.core.sealing.sealed_text import write_sealed_text

_LONGEST_NAME = 120
"""Of a run folder, in characters; a file system takes 255 bytes, and a character may be several."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    :param model: The pruned model, in eval mode.
    :param report: What ``report.json`` holds, with typed fields.
    """

    folder: Path
    recipe: Recipe
    plan: Plan
    report: Report
    model: nn.Module


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    model: nn.Module | None = None,
    processor: Any = None,
    folder: Path | str | None = None,
    set_: Sequence[str] | Mapping[str, Any] | str = (),
    registry: Registry | None = None,
    fresh: bool = False,
    allow_code: bool = False,
    accept_change: bool = False,
    ranks: Ranks = ALONE,
) -> Run:
    """Do what ``ecoflap run`` does.

    :param recipe: A file, the name of a shipped recipe, a mapping like a recipe's, which may hold parts as objects or
        classes, or a recipe that was loaded.
    :param model: A model in memory, pruned in place instead of the recipe's source: for another run it is loaded anew,
        and so it is to go on with one that was cut off. One from ``torch.compile`` runs as it was written meanwhile.
    :param processor: Its tokenizer or processor.
    :param folder: The run folder; ``runs/NAME`` by default. A run that was cut off there goes on.
    :param set_: Overrides like ``--set``, such as ``["prune.use=sparsegpt"]``, or ``{"prune.use": "sparsegpt"}``.
    :param fresh: Begin anew, deleting what the folder holds of an earlier run.
    :param allow_code: Follow the import paths of the recipe, which are refused otherwise. Objects and classes that a
        mapping holds need no leave.
    :param accept_change: Go on with a run although its calibration data, ecoflap, a library, Python or the code of a
        part of your own changed since it was begun, which is refused otherwise.
    :param ranks: The processes that do it together, from ``ecoflap.ranks.joined``; each calls this with the same
        arguments, and has the pruned model afterwards.
    """
    registry = (registry or load_registry()).trusting(allow_code)
    set_ = as_assignments(set_)
    model = model if model is None else uncompiled(model)
    checked = _checked(recipe, set_, registry, model)
    refuse_numbered_device(ranks, checked)
    target = from_here(folder if folder is not None else Path("runs") / default_name(recipe, set_))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # of the caller's: weights are written, and have gradients
        stack.enter_context(not_cast())
        stack.enter_context(run_eagerly(model))
        stack.enter_context(whole_float32())
        prepared = prepare(checked, registry, model, processor, own=target)
        if fresh:
            refuse_deleting_inputs(prepared, target)
        check_same_asked(ranks, checked, target)  # by now all have read the recipe, which fresh may delete
        run_folder = ranks.first(lambda: stack.enter_context(open_run(target, fresh=fresh)))
        log = (RunLog if ranks.rank == 0 else SilentLog)(run_folder, Observers(registry.observers()))
        run_model = RunModel(prepared, log, target, ranks.first(partial(held_in, prepared, run_folder)))
        data = RunData(prepared, run_model, log)
        return carry_out(RunState(prepared, run_folder, log, run_model, data, accept_change, ranks=ranks))


def _checked(
    recipe: Recipe | Mapping[str, Any] | str | Path, set_: Sequence[str], registry: Registry, model: nn.Module | None
) -> Recipe:
    if isinstance(recipe, Recipe):
        if set_:
            raise RecipeError("set_ changes a recipe as it is read, and this one is loaded: give set_ to load_recipe")
        return recipe
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, set_=set_, registry=registry, in_memory=model is not None)
    path = find_recipe(str(recipe))
    return load_recipe(path, set_=set_, registry=registry, in_memory=model is not None)


def default_name(recipe: Recipe | Mapping[str, Any] | str | Path, set_: Sequence[str]) -> str:
    """Name a run folder after the recipe's file and what was set otherwise, so that two runs do not meet in one.

    What may change within a folder is left out: a run with another ``export`` goes on from the one there is. A recipe
    that ships is called by its folder, too, for several are called alike: ``language/fast``.
    """
    is_shipped = isinstance(recipe, str) and "/" in recipe and not (recipe.endswith(".yaml") or Path(recipe).is_file())
    stem = str(recipe) if is_shipped else Path(recipe).stem if isinstance(recipe, str | Path) else "run"
    telling = [item for item in set_ if not is_within(item.split("=")[0].strip(), may_change())]
    return re.sub(r"[^\w.-]+", "-", "-".join([stem, *telling]))[:_LONGEST_NAME].strip("-.") or "run"


def carry_out(state: RunState) -> Run:
    """Do every stage that is not done yet, and tell observers how it went."""
    here, code = versions(_used(state)), code_of_parts(_used(state))
    check_same_code(state.ranks, here, code)
    check_same_device(state.ranks, state.model.device)
    check_sendable(state.ranks, state.prepared.pruners)
    state.ranks.first(partial(_claim, state))
    check_same_disk(state.ranks, state.folder.path)
    ahead = tuple(_stages_ahead(state))
    working = any(stage not in ("load", "check") for stage in ahead)
    accepted = state.ranks.first(partial(_identify_code, state, here, working))
    state.log.emit(RunStarted(state.folder.path, ahead))
    computed = _other_arithmetic(state, working)
    for warning in (*state.prepared.also_changed, *seen_samples(state.recipe), *accepted, *computed):
        state.log.note(warning)
    try:
        with state.model.blamed_where_changed():
            result = _stages(state)
    except BaseException as error:
        state.log.tell_only(RunFailed(state.ranks.why(error)))
        raise
    state.log.emit(RunFinished(state.folder.path, result.report))
    return result


def _identify_code(state: RunState, here: Mapping[str, str], working: bool) -> list[str]:
    """Hold the folder to the code of the run's own parts, and to versions; give what was accepted.

    :param here: The versions of this process.
    """
    adapter = type(state.prepared.adapter)
    lasting, evaluated_by = code_of_parts([*lasting_parts(state.recipe), adapter]), code_of_parts([adapter])
    identity = Identity(state.folder)
    accepted = identity.check_code(lasting, evaluated_by=evaluated_by, accept=state.accept_change)
    return accepted + identity.check_versions(here, working=working, accept=state.accept_change)


def _other_arithmetic(state: RunState, working: bool) -> list[str]:
    """Say where others of the processes, or those of before, compute by something else on their CPUs than the first.

    :param working: Whether anything is left to do.
    """
    own, identity, matters = arithmetic(), Identity(state.folder), working and state.model.device == "cpu"
    others = other_arithmetic(state.ranks, own)
    return state.ranks.first(lambda: others + identity.other_arithmetic(own) if matters else [])


def _used(state: RunState) -> list[Callable[..., Any]]:
    """Name all whose code the run goes through: what makes its recipe's parts, and the adapter, named or found."""
    return [*(spec.factory for _, spec in state.recipe.specs()), type(state.prepared.adapter)]


def _still_to_evaluate(state: RunState) -> Iterator[tuple[int, Evaluation]]:
    """Yield the evaluations that are not done, each with its number in the recipe; what is done is read only then."""
    still = {id(one) for stage in STAGES for one in state.to_evaluate(stage)}
    yield from ((at, one) for at, one in enumerate(state.evaluations, 1) if id(one) in still)


def _stages(state: RunState) -> Run:
    """Go through the stages.

    The adapter is held against the model first. The dense evaluation comes next: data that cannot be read are found
    before scoring.
    """
    folder = state.folder
    check_same_found(state.ranks, state.data.model_fingerprint)
    check_same_evaluated(state.ranks, _still_to_evaluate(state))
    if state.prepared.source.model is not None:
        state.ranks.first(lambda: refuse_pruned_in_place(folder, state.data.model_fingerprint))
    state.ranks.first(lambda: Identity(folder).check(state.data.model_fingerprint))
    if state.is_pruned:
        plan, model = _go_on_behind_pruning(state)
    else:
        _identify_data(state)
        _warn_of_other_models(state)
        check_adapter_on_data(state)
        state.ranks.at_first(partial(_warn_of_zeros, state))
        stages.evaluate(state, "dense", state.model.get())
        plan, model = _pruned(state)
    stages.evaluate(state, "pruned", model)
    missing = state.missing_exports  # which all processes find out together, and the first alone writes
    report = state.ranks.first(partial(_finish, state, plan, model, missing))
    return Run(folder.path, state.recipe, plan, report, model)


def _pruned(state: RunState) -> tuple[Plan, nn.Module]:
    """Do all rounds, and save the model; what is held of the dense one for refiners is not held behind it."""
    last = after_rounds(state)
    plan = stages.plan(last)
    return plan, stages.prune_and_save(last, plan)


def _finish(state: RunState, plan: Plan, model: nn.Module, missing: Sequence[str]) -> Report:
    """Export the pruned model, and write the report.

    :param missing: The exports that are not all there.
    """
    folder = state.folder
    masks = masks_as_planned(folder.masks, plan)
    measures = measures_of(folder.evaluations, state.evaluations)
    known, keys = provenance_of(folder, state.recipe.plain(), plan, measures), state.recipe.calibration
    batches = partial(state.data.batches, keys) if keys is not None else None
    pruned = PrunedModel(
        model,
        state.prepared.adapter,
        masks,
        known,
        batches,
        offloaded=state.model.stays_on_disk,
        held_in=state.model.held_in,
        visits=state.model.visits,
    )
    if refused := export_all(folder, state.recipe, missing, pruned, state.log):
        raise ended_by(folder, state.recipe, refused) from next(iter(refused.values()))
    return _report(state, plan, model, measures)


def _go_on_behind_pruning(state: RunState) -> tuple[Plan, nn.Module]:
    """Take up what earlier processes made; the dense model is read only where it is still to be evaluated."""
    folder = state.folder
    plan = state.ranks.first(partial(_taken_up, folder))
    if state.to_evaluate("dense"):
        stages.evaluate(state, "dense", state.model.get())
        _identify_data(state)
    model = state.model.become_pruned(folder.model, plan)
    _identify_data(state)
    return plan, model


def _taken_up(folder: RunFolder) -> Plan:
    folder.check_model()
    folder.drop_blocks()
    return stages.planned(folder)


def _identify_data(state: RunState) -> None:
    """Refuse other data than the folder was begun with, or note them where they are accepted."""
    check_same_found(state.ranks, state.data.fingerprints)
    check_enough_batches(state.ranks, _counts_of_batches_left(state))
    identity = Identity(state.folder)
    found = state.ranks.first(lambda: identity.check(state.data.fingerprints, accept=state.accept_change))
    for sentence in found:
        state.log.note(sentence)


def _counts_of_batches_left(state: RunState) -> dict[str, int]:
    """Count the batches that are still to be shared, by what they are for."""
    if state.is_pruned:
        return {}
    return state.data.batch_counts(is_planned=state.ranks.first(state.folder.plan.is_file))


def _warn_of_other_models(state: RunState) -> None:
    """Note which parts take something over of a run of another model: a sibling's may be meant, a stranger's is not."""
    model = state.data.model_fingerprint["model"]
    for sentence in state.ranks.first(lambda: list(of_other_models(state.recipe, model))):
        state.log.note(sentence)


def _warn_of_zeros(state: RunState) -> None:
    """Note that the model has been pruned already, unless masks of elsewhere say how much is pruned: they are meant."""
    pools = state.prepared.pools
    if state.recipe.sparsity_fraction is not None or state.recipe.allocated_at == "allocate":
        told = zeros_before(state.model.anatomy, {layer.name for pool in pools for _, layer in pool.layers})
        if told is not None:
            state.log.note(told)


def _claim(state: RunState) -> None:
    """Refuse a folder of another recipe, or one that was edited; keys that follow what is there already may change."""
    folder = state.folder
    if folder.recipe.is_file():
        begun, now = folder.read_recipe(), state.recipe.plain()
        changed = changes(begun, now)
        if changed:
            raise RunError(
                f"{folder.path} was begun with another recipe: {'; '.join(changed)} (before vs now). "
                f"Run into another folder with --folder, where reuse: [{folder.path}] takes over what would be the "
                f"same, or begin this one anew with --fresh {FROM_PYTHON}"
            )
        refuse_moved(folder, begun, now)
    if folder.report.is_file():
        report = read_report(folder.report)
        check_lines(folder, report)
        check_recipe(folder, report)
    write_sealed_text(folder.recipe, state.recipe.dump())


def _stages_ahead(state: RunState) -> Iterator[str]:
    """Name what is still to be done, as far as can be told before the model is looked at."""
    if state.prepared.source.model is None:
        yield "load"
    if is_to_be_checked(state):
        yield "check"
    if state.to_evaluate("dense"):
        yield "evaluate dense"
    if not state.is_pruned:
        for number in (*rounds_ahead(state), None):
            folder = state.folder if number is None else state.folder.round(number)
            planning = ("score", "allocate") if state.prepared.looks_at_scores else ("allocate",)
            names = ("prune",) if state.ranks.first(folder.plan.is_file) else (*planning, "prune")
            yield from (stage_of_round(name, number) for name in names)
        yield from ("refine", "save") if state.prepared.model_refiners else ("save",)
    if state.to_evaluate("pruned"):
        yield "evaluate pruned"
    yield from (f"export {name}" for name in state.missing_exports)


def _report(state: RunState, plan: Plan, model: nn.Module, measures: Mapping[str, Any]) -> Report:
    """Write the report, which makes the run a finished one."""
    names = export_names(state.recipe.export)
    outcome = Outcome(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        nonzeros=nonzeros(state.model.anatomy, plan.layers),
        measures=measures,
        bytes=exported_bytes(state.folder, names),
        exports=manifests(state.folder.exports, names),
        device=state.model.device,
        computed_in=state.model.computed_in,
        versions={**versions(_used(state)), **Identity(state.folder).code()},
    )
    report = make_report(state.folder, state.recipe, plan, outcome)
    write_report(state.folder, report)
    return report
