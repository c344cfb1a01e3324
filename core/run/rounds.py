"""The rounds before the last: each scores the model as it is then, allocates, and prunes what is left further.

A round is the recipe with a smaller sparsity, in a folder of its own, ``rounds/1`` and so on. Its finished blocks stay
there until the model is complete, so that a run that was cut off comes to the same weights by reading them. Of a model
that stays in its files they are whole, so that those of one round are enough, and go when the next one is finished.
"""

import shutil
from dataclasses import replace
from functools import partial

from torch import Tensor

from ecoflap.core.disk.whole_files import delete_whole
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.planning.plan_file import read_plan
from ecoflap.core.planning.scores import folder_of
from ecoflap.core.preparing.prepared import Prepared, pools_in
from ecoflap.core.pruning.block_files import are_all_there
from ecoflap.core.pruning.masks import PackedMasks, save_masks
from ecoflap.core.recipe.rounds import recipe_of_round
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.run import stages
from ecoflap.core.run.run_state import RoundDone, RunState


def after_rounds(state: RunState) -> RunState:
    """Do all rounds but the last, if any, on the model in place, and give the state in which that one begins."""
    state = replace(state, dense_weights={layer.name: _as_it_is(state, layer) for layer in _wanted_dense(state)})
    before: RoundDone | None = None
    for number in rounds_ahead(state):
        folder = state.folder.round(number)
        state.ranks.at_first(partial(folder.path.mkdir, parents=True, exist_ok=True))
        one = replace(state, prepared=_in_round(state.prepared, number), folder=folder, before=before, number=number)
        plan = stages.plan(one)
        # They have served once there is a plan, and those of all rounds would take as much disk for each.
        state.ranks.at_first(partial(shutil.rmtree, folder_of(folder.scores), ignore_errors=True))
        masks = stages.prune_and_refine(one, plan)
        state.ranks.at_first(partial(_keep_masks, folder, masks))
        _drop_before(state, number)
        before = RoundDone(plan, masks)
    return replace(state, before=before)


def rounds_ahead(state: RunState) -> range:
    """Give the numbers of the rounds before the last that are to be done, or to be taken up.

    Where a round left files of whole blocks, none before it is needed.
    """
    numbers = range(1, state.recipe.round_count)
    if not state.model.stays_on_disk:
        return numbers
    whole = state.ranks.first(lambda: [number for number in numbers if _is_whole(state, number)])
    return numbers[max(whole, default=1) - 1 :]


def _is_whole(state: RunState, number: int) -> bool:
    """Say whether the files of all blocks that a round prunes are there."""
    folder = state.folder.round(number)
    anatomy = state.prepared.anatomy
    return folder.plan.is_file() and are_all_there(folder.blocks, read_plan(folder.plan), anatomy)


def _drop_before(state: RunState, number: int) -> None:
    """Delete the finished blocks of the round before this one, where no weight is any more what they say.

    In memory a block is kept as what a round changed of it, and those of all rounds are needed.
    """
    if state.model.stays_on_disk and number > 1:
        blocks = state.folder.round(number - 1).blocks
        state.model.forget_blocks(blocks)
        state.ranks.gather(None)  # no process holds weights there any more
        state.ranks.at_first(partial(delete_whole, blocks))


def _keep_masks(folder: RunFolder, masks: PackedMasks) -> None:
    if not folder.masks.is_file():
        save_masks(folder.masks, masks)


def _in_round(prepared: Prepared, number: int) -> Prepared:
    recipe = recipe_of_round(prepared.recipe, number)
    return replace(prepared, recipe=recipe, pools=tuple(pools_in(prepared.anatomy, recipe)))


def _as_it_is(state: RunState, layer: Layer) -> Tensor:
    """Give a layer's weight to be looked at when it was pruned: a copy, or what is mapped, which nobody writes to."""
    weight = layer.weight.data
    return weight if state.model.stays_on_disk else weight.to("cpu", copy=True)


def _wanted_dense(state: RunState) -> list[Layer]:
    """Give the layers whose dense weights are held, because somebody looks at them after they were pruned."""
    if not state.prepared.holds_dense_weights:
        return []
    wanted = {layer.name for pool in state.prepared.pools for _, layer in pool.layers}
    return [layer for _, layer in state.model.anatomy.layers() if layer.name in wanted]
