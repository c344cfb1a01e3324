"""The last of pruning: refiners of the whole model, once all of its blocks are pruned."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ecoflap.core.contracts.events import Event, Progress
from ecoflap.core.forward.replay import Replay
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.refining.model_view import ModelView
from ecoflap.core.refining.refine import refine


def refine_model(
    dense: Replay,
    plan: Plan,
    masks: PackedMasks,
    refiners: Sequence[PartSpec],
    emit: Callable[[Event], None],
    file: Path,
) -> None:
    """Let refiners train all kept weights of a pruned model in place, in their order.

    A process that is killed in the first goes on from the steps that were kept. In another it begins this anew: what
    that one began with is nowhere but in memory. Either way it comes to the same weights, for nothing is drawn.

    :param dense: What each block returned while it was dense.
    :param file: Where steps are kept.
    """

    def tell(done: int, total: int) -> None:
        emit(Progress("refine", done, total, "steps"))

    layers = [layer for _, layer in dense.anatomy.layers() if layer.name in plan.layers]
    oriented = {layer.name: layer.oriented(masks[layer.name]) for layer in layers}
    view = ModelView(dense, layers, oriented)
    with view.opened():
        for number, refiner in enumerate(refiners):
            own = {"refiner": refiner.plain(), "plan": plan.digest}
            view.kept = KeptSteps(file, own, dense.ranks, tell) if number == 0 else None
            refine(view, refiner, emit)
