"""The stages of a run, a function each, over what a run holds: evaluate, score and allocate, prune, refine and save."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.blame import PartError, blaming
from ecoflap.core.contracts.records import Batch, Granularity
from ecoflap.core.disk.whole_files import whole_folder
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.forward.placement import outside_held
from ecoflap.core.guards.untouched import modes_put_back
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.planning.emptied import emptied
from ecoflap.core.planning.left_alone import left_alone
from ecoflap.core.planning.plan import Plan, Pool, make_plan
from ecoflap.core.planning.plan_file import read_plan, read_scores_of, write_plan
from ecoflap.core.planning.score_layers import score_layers
from ecoflap.core.planning.scores import Scores, take_over_scores
from ecoflap.core.preparing.prepared import pools_in
from ecoflap.core.pruning.masks import PackedMasks, save_masks
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.pruning.refine_model import REFINED, model_view, refine_model
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.readback import check_saved
from ecoflap.core.record.reuse import found_evaluation, found_scores
from ecoflap.core.run.plan_trials import PlanTrials
from ecoflap.core.run.run_state import RunState
from ecoflap.core.run.spare_memory import spare_for_pruning, spare_for_scoring
from ecoflap.core.sealing.sums import write_sums


def evaluate(state: RunState, stage: str, model: nn.Module) -> None:
    """Let each evaluator that has not done so look at a model.

    :param stage: ``dense`` or ``pruned``. What another run found of the dense model is taken over where the recipe
        names that run and everything it depends on is equal.
    """
    folder = state.folder
    for evaluation in state.to_evaluate(stage):
        if stage == "dense" and state.ranks.first(partial(_take_over_evaluation, state, evaluation)):
            continue
        with state.log.stage(f"evaluate {stage}"), torch.no_grad(), state.model.running():
            note, is_on_disk = state.log.note_of(evaluation.evaluator.use), state.model.stays_on_disk
            adapter, changed = state.prepared.adapter, state.model.refuse_changed
            evaluation.run(folder.evaluations, stage, model, adapter, note, state.ranks, changed, is_on_disk=is_on_disk)


def _take_over_evaluation(state: RunState, evaluation: Evaluation) -> bool:
    """Take over what another run found of the dense model; say whether there was any."""
    found = _evaluation_to_take_over(state, evaluation)
    if found is not None:
        state.folder.record_taken_over("dense evaluation")
        evaluation.take_over(found, state.folder.evaluations)
    return found is not None


def _evaluation_to_take_over(state: RunState, evaluation: Evaluation) -> Path | None:
    if not state.recipe.reuse:
        return None
    adapter = state.prepared.adapter
    return found_evaluation(state.recipe, state.data.model_fingerprint, adapter, state.folder.path, evaluation)


def plan(state: RunState) -> Plan:
    """Score the layers where the allocator looks at scores, and allocate; or read the plan that there is."""
    there = state.ranks.first(lambda: planned(state.folder) if state.folder.plan.is_file() else None)
    if there is not None:
        return there
    pools = pools_in(state.model.anatomy, state.recipe)
    scores = score(state, pools) if state.prepared.looks_at_scores else None
    granularity = state.recipe.score.granularity if state.recipe.score else "layer"
    allocator = state.recipe.allocate
    with state.log.stage(state.stage("allocate")):
        plans = state.ranks.first(lambda: _plans(state, allocator, pools, granularity, scores))
        made = _trials(state).best(plans) if len(plans) > 1 else next(iter(plans.values()))
        if (sentence := emptied(made)) is not None:
            state.log.note(sentence)
        state.model.refuse_changed(state.ranks)
        kept = {one.reason: one.parameters for one in state.prepared.kept_whole}
        state.ranks.first(partial(write_plan, state.folder.plan, made, kept, state.folder.scores))
    return made


def _plans(
    state: RunState, allocator: PartSpec, pools: Sequence[Pool], granularity: Granularity, scores: Scores | None
) -> dict[str, Plan]:
    """Make the plan of each allocator that is tried, and of each choice of tokens that it is tried by.

    One process does: files of scores are read once.
    """
    candidates, tried = allocator.candidates, state.prepared.tokens_tried
    plans = {label: _made(state, one, pools, granularity, scores) for label, one in candidates.items()}
    if not tried:
        return plans
    both = product(plans.items(), tried)
    return {f"{label} by {choice} tokens": replace(plan, tokens=choice) for (label, plan), choice in both}


def _made(
    state: RunState, allocator: PartSpec, pools: Sequence[Pool], granularity: Granularity, scores: Scores | None
) -> Plan:
    looked_at, before = scores if allocator.options.takes else None, state.before.plan if state.before else None
    granularity = granularity if looked_at else "layer"
    with blaming(f"the allocator {allocator.use}"):
        return make_plan(pools, allocator.built, granularity, looked_at, before, state.recipe.seed)


def _trials(state: RunState) -> PlanTrials:
    batches, held_out = state.data.batches(state.recipe.calibration), state.recipe.allocate.options.held_out
    prepared = state.prepared
    copied = prepared.size * prepared.dtype.itemsize  # the weights that a trial puts back
    spare = max(0, spare_for_pruning(prepared) - copied)
    return PlanTrials(
        partial(state.replay, keys=state.recipe.calibration, spare=spare),
        batches,
        held_out,
        prepared.pruners,
        state.folder,
        state.log,
        refiners_of=prepared.block_refiners if state.recipe.allocate.options.refine else {},
        tokens=prepared.tokens,
        left=state.left,
        dense_weights=state.weights_before_rounds,
        sequential=state.recipe.sequential,
        finished_weights=state.model.finished_weights,
        ranks=state.ranks,
    )


def planned(folder: RunFolder) -> Plan:
    """Read the plan that there is, and hold the scores to it that it was made by, if they are still there."""
    if folder.scores.is_file():
        read_scores_of(folder.plan, folder.scores)
    return read_plan(folder.plan)


def score(state: RunState, pools: Sequence[Pool]) -> Scores:
    """Score the layers of all pools that have no pattern, or read the scores that there are."""
    keys = state.recipe.score
    assert keys is not None  # checked with the recipe
    state.ranks.first(partial(_take_over_scores, state))
    wanted = {layer.name for pool in pools if not isinstance(pool.sparsity, Pattern) for _, layer in pool.layers}
    layers = [pair for pair in state.model.anatomy.layers() if pair[1].name in wanted]
    data = state.recipe.score_calibration if keys.scorer.options.data else None
    batches = state.data.batches(data, keys.scorer.options.samples)
    with state.log.stage(state.stage("score")):
        if keys.scorer.options.shares:
            return _scored(state, batches, layers, state.ranks)
        if state.ranks.size > 1 and batches:
            state.log.note(
                f"{keys.scorer.use}: it knows nothing of several processes, so one scores and the others wait"
            )
        return state.ranks.first(lambda: _scored(state, batches, layers, ALONE))


def _scored(state: RunState, batches: Sequence[Batch], layers: Sequence[tuple[Block, Layer]], ranks: Ranks) -> Scores:
    keys = state.recipe.score
    assert keys is not None
    # In bfloat16 small differences of losses are mostly rounding, so a scorer has to ask for less than float32.
    dtype = torch.float32 if keys.scorer.options.dtype == "float32" else None
    data = state.recipe.score_calibration if keys.scorer.options.data else None
    spare = spare_for_scoring(state.prepared)
    path, emit, refuse_changed = state.folder.scores, state.log.emit, state.model.refuse_changed
    model, scored = state.model.get(), [layer for _, layer in layers]
    is_on_disk = state.model.stays_on_disk
    alone = left_alone(keys.scorer.use, model, scored, path, ranks, refuse_changed, is_on_disk=is_on_disk)
    with alone, modes_put_back(model), state.replay(batches, data, dtype, ranks, spare) as replay:
        return score_layers(keys.scorer, keys.aggregate, replay, layers, path, emit, refuse_changed)


def _take_over_scores(state: RunState) -> None:
    if state.recipe.reuse and not state.folder.scores.is_file():
        found = found_scores(state.recipe, state.data.fingerprints, state.prepared.adapter, state.folder.path)
        if found is not None:
            state.folder.record_taken_over("scores")
            take_over_scores(found, state.folder.scores)


def prune_and_refine(state: RunState, made: Plan) -> PackedMasks:
    """Prune and refine the model in place; what its replays recorded is gone afterwards."""
    prepared, keys = state.prepared, state.recipe.calibration
    batches = state.data.batches(keys)
    replay = state.replay(batches, keys, spare=spare_for_pruning(prepared))
    dense = state.replay(batches, keys) if prepared.looks_at_dense else None
    outside = outside_held(replay.model, replay.anatomy, replay.placement)
    with state.log.stage(state.stage("prune")), outside:
        masks = BlockwisePruning(
            replay,
            made,
            prepared.pruners,
            state.folder.blocks,
            state.log.emit,
            refiners_of=prepared.block_refiners,
            dense=dense,
            sequential=state.recipe.sequential,
            tokens_of=prepared.tokens(made.tokens),
            left=state.left,
            dense_weights=state.weights_before_rounds,
            finished_weights=state.model.finished_weights(state.folder.blocks),
        )()
    del replay
    if prepared.model_refiners:
        assert dense is not None
        with state.log.stage("refine"):
            finished_weights = state.model.finished_weights(state.folder.blocks / REFINED)
            view = model_view(dense, made, masks, state.dense_weights, state.folder.path if finished_weights else None)
            refine_model(view, prepared.model_refiners, made, state.log.emit, state.folder.blocks, finished_weights)
    return masks


def prune_and_save(state: RunState, made: Plan) -> nn.Module:
    """Prune the model by its plan, block by block, refine it, and save it with its masks.

    :return: The model that was pruned in place; where weights stay in files, the saved one.
    """
    masks = prune_and_refine(state, made)
    state.data.clear()
    with state.log.stage("save"):
        state.ranks.first(partial(_save, state, state.model.get(), masks))
        state.model.forget_blocks(state.folder.path)
        return state.model.leave_source(state.folder.model)


def _save(state: RunState, model: nn.Module, masks: PackedMasks) -> None:
    """Write masks and model, and read them back."""
    folder = state.folder
    save_masks(folder.masks, masks)
    with whole_folder(folder.model) as inside, _telling_what_is_kept(state):
        who = f"the adapter {type(state.prepared.adapter).__name__}, saving the model,"
        with blaming(who), explained(folder.model, inside):
            _write_model(state, model, inside)
        check_saved(inside, model, masks, partial(state.model.read, inside))
        write_sums(inside)
        folder.record_model(inside)
    folder.drop_blocks()


@contextmanager
def _telling_what_is_kept(state: RunState) -> Iterator[None]:
    """Say of an adapter that cannot save its model, or not as it is, that nothing has to be pruned again."""
    try:
        yield
    except (PartError, FormatError, ModelError) as error:
        anew = ", with the model loaded anew" if state.prepared.source.model is not None else ""
        kept = (
            f"Finished blocks are kept in {state.folder.blocks}: mend the adapter's save, and run again{anew}, with "
            f"--accept-change (accept_change=True from Python), for its code is another then"
        )
        *others, last = error.problems
        raise type(error)(*others, f"{last.rstrip('.')}. {kept}") from error


def _write_model(state: RunState, model: nn.Module, folder: Path) -> None:
    """Write the model and what lies beside it; where its blocks are in files already, these become its own."""
    adapter, finished_weights = state.prepared.adapter, state.model.finished_weights(state.folder.blocks)
    if finished_weights is None:
        adapter.save(model, folder)
        return
    options = state.prepared.adapter_options
    assert options.save_weights is not None  # both are checked with the recipe
    assert options.save_surroundings is not None
    finished_weights.save(folder, partial(options.save_weights, model))
    options.save_surroundings(model, folder)
