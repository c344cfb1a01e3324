"""The last of pruning: refiners of the whole model, once all of its blocks are pruned."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from ecoflap.core.contracts.events import Event, Progress
from ecoflap.core.disk.on_disk import matrix_on_disk
from ecoflap.core.forward.replay import Replay
from ecoflap.core.planning.plan import Plan
from ecoflap.core.pruning.finished_weights import FinishedWeights
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.finished_refiners import FILE as FINISHED
from ecoflap.core.refining.finished_refiners import FinishedRefiners
from ecoflap.core.refining.kept_steps import FILE as STEPS
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.refining.model_view import ModelView
from ecoflap.core.refining.refine import refine

REFINED = "refined"
"""A folder among the finished blocks, with these as refiners left them, of a model that stays in its files."""


def model_view(
    dense: Replay,
    plan: Plan,
    masks: PackedMasks,
    dense_weights: Mapping[str, Tensor],
    keep_in: Path | None = None,
) -> ModelView:
    """Give a pruned model as its refiners see it.

    :param dense: What each block returned while it was dense.
    :param dense_weights: What matrices were before anything was pruned, where a refiner asks for them.
    :param keep_in: A folder on whose disk all lies that is trained; None for memory.
    """
    layers = [layer for _, layer in dense.anatomy.layers() if layer.name in plan.layers]
    # In files one process refines alone, and the others wait for it.
    looked_at = layers if keep_in is None or dense.ranks.rank == 0 else ()
    oriented = {layer.name: layer.oriented(matrix_on_disk(masks[layer.name], keep_in)) for layer in looked_at}
    return ModelView(dense, layers, oriented, dense_weights, keep_in)


def refine_model(
    view: ModelView,
    refiners: Sequence[PartSpec],
    plan: Plan,
    emit: Callable[[Event], None],
    folder: Path,
    finished_weights: FinishedWeights | None = None,
) -> None:
    """Let refiners train all kept weights of a pruned model in place, in their order.

    A process that is killed goes on behind the refiners that are finished, and in the next one from the steps that were
    kept. It comes to the same weights as one that is not, for nothing is drawn.

    :param plan: The one by which it was pruned.
    :param folder: Where weights and steps are kept.
    :param finished_weights: Takes refined blocks out of memory, into a folder beside that of the pruned ones; None
        where the model is in memory. The first process does all then: a gradient that others would send is as large as
        the model.
    """
    if finished_weights is None:
        _refine(view, refiners, plan, emit, folder)
    else:
        view.shared_by.first(partial(_refine_in_files, view, refiners, plan, emit, folder, finished_weights))
        if view.shared_by.rank > 0:
            for number, block in view.blocks:
                finished_weights.hold(number, block)
        view.shared_by.gather(None)  # until all have mapped the files, which go when the model is saved


def _refine_in_files(
    view: ModelView,
    refiners: Sequence[PartSpec],
    plan: Plan,
    emit: Callable[[Event], None],
    folder: Path,
    finished_weights: FinishedWeights,
) -> None:
    """Refine a model that stays in its files, and put its blocks away block by block.

    Those that were pruned stay where they are until the model is saved. What lies beside them is looked at by those
    alone that saw all of it written: a process that is killed meanwhile begins from the pruned ones.
    """
    _refine(view, refiners, plan, emit, folder)
    for number, block in view.blocks:
        view.weights.take(block.module.parameters())
        finished_weights.put_away(number, block)


def _refine(
    view: ModelView, refiners: Sequence[PartSpec], plan: Plan, emit: Callable[[Event], None], folder: Path
) -> None:
    def tell(done: int, total: int) -> None:
        emit(Progress("refine", done, total, "steps"))

    plain = [refiner.plain() for refiner in refiners]
    finished = FinishedRefiners(folder / FINISHED, plain, plan.digest, view.ranks, view.keep_in is not None)
    with view.opened():
        done = finished.take_up(view.parameters)
        for one in done:
            emit(one)
        for number in range(len(done), len(refiners)):
            own = {"refiner": plain[number], "number": number, "plan": plan.digest}
            view.kept = KeptSteps(folder / STEPS, own, view.ranks, tell, keep_in=view.keep_in)
            done.append(refine(view, refiners[number], number, emit))
            if len(done) < len(refiners):
                finished.keep(done, view.parameters)
