"""The last of pruning: refiners of the whole model, once all of its blocks are pruned."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ecoflap.core.contracts.events import Event, Progress
from ecoflap.core.forward.replay import Replay
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.finished_refiners import FILE as FINISHED
from ecoflap.core.refining.finished_refiners import FinishedRefiners
from ecoflap.core.refining.kept_steps import FILE as STEPS
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.refining.model_view import ModelView
from ecoflap.core.refining.refine import refine


def model_view(dense: Replay, plan: Plan, masks: PackedMasks, dense_weights: Mapping[str, Tensor]) -> ModelView:
    """Give a pruned model as its refiners see it.

    :param dense: What each block returned while it was dense.
    :param dense_weights: What matrices were before anything was pruned, where a refiner asks for them.
    """
    layers = [layer for _, layer in dense.anatomy.layers() if layer.name in plan.layers]
    oriented = {layer.name: layer.oriented(masks[layer.name]) for layer in layers}
    return ModelView(dense, layers, oriented, dense_weights)


def refine_model(
    view: ModelView, refiners: Sequence[PartSpec], plan: Plan, emit: Callable[[Event], None], folder: Path
) -> None:
    """Let refiners train all kept weights of a pruned model in place, in their order.

    A process that is killed goes on behind the refiners that are finished, and in the next one from the steps that were
    kept. It comes to the same weights as one that is not, for nothing is drawn.

    :param plan: The one by which it was pruned.
    :param folder: Where weights and steps are kept.
    """

    def tell(done: int, total: int) -> None:
        emit(Progress("refine", done, total, "steps"))

    plain = [refiner.plain() for refiner in refiners]
    finished = FinishedRefiners(folder / FINISHED, plain, plan.digest, view.ranks)
    with view.opened():
        done = finished.take_up(view.parameters)
        for one in done:
            emit(one)
        for number in range(len(done), len(refiners)):
            own = {"refiner": plain[number], "number": number, "plan": plan.digest}
            view.kept = KeptSteps(folder / STEPS, own, view.ranks, tell)
            done.append(refine(view, refiners[number], number, emit))
            if len(done) < len(refiners):
                finished.keep(done, view.parameters)
