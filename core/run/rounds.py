"""The rounds before the last: each scores the model as it is then, allocates, and prunes what is left further.

A round is the recipe with a smaller sparsity, in a folder of its own, ``rounds/1`` and so on. Its finished blocks stay
there until the model is complete, so that a run that was cut off comes to the same weights by reading them.
"""

import shutil
from dataclasses import replace
from functools import partial

from ecoflap.core.model.anatomy import Layer
from ecoflap.core.pruning.masks import PackedMasks, save_masks
from ecoflap.core.pruning.scores import folder_of
from ecoflap.core.recipe.rounds import recipe_of_round
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.run import stages
from ecoflap.core.run.prepared import Prepared, pools_in
from ecoflap.core.run.stages import RoundDone, RunState


def after_rounds(state: RunState) -> RunState:
    """Do all rounds but the last on the model in place, and give the state in which that one begins."""
    dense = {layer.name: layer.weight.data.to("cpu", copy=True) for layer in _wanted_dense(state)}
    before: RoundDone | None = None
    for number in range(1, state.recipe.round_count):
        folder = state.folder.round(number)
        state.ranks.at_first(partial(folder.path.mkdir, parents=True, exist_ok=True))
        one = replace(state, prepared=_in_round(state.prepared, number), folder=folder, before=before, number=number)
        plan = stages.plan(one)
        # They have served once there is a plan, and those of all rounds would take as much disk for each.
        state.ranks.at_first(partial(shutil.rmtree, folder_of(folder.scores), ignore_errors=True))
        masks = stages.prune_and_refine(one, plan)
        state.ranks.at_first(partial(_keep_masks, folder, masks))
        before = RoundDone(plan, masks, dense)
    return replace(state, before=before)


def _keep_masks(folder: RunFolder, masks: PackedMasks) -> None:
    if not folder.masks.is_file():
        save_masks(folder.masks, masks)


def _in_round(prepared: Prepared, number: int) -> Prepared:
    recipe = recipe_of_round(prepared.recipe, number)
    return replace(prepared, recipe=recipe, pools=tuple(pools_in(prepared.anatomy, recipe)))


def _wanted_dense(state: RunState) -> list[Layer]:
    """Give the layers of whose dense weights a copy is held, because refiners ask for them after they were pruned."""
    refined = any(state.prepared.block_refiners.values()) or state.prepared.model_refiners
    if state.recipe.round_count == 1 or not refined:
        return []
    wanted = {layer.name for pool in state.prepared.pools for _, layer in pool.layers}
    return [layer for _, layer in state.model.anatomy.layers() if layer.name in wanted]
