"""The last of pruning: refiners of the whole model, once all of its blocks are pruned."""

from collections.abc import Callable, Sequence

from ecoflap.core.contracts.events import Event
from ecoflap.core.forward.replay import Replay
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.model_view import ModelView
from ecoflap.core.refining.refine import refine


def refine_model(
    dense: Replay, plan: Plan, masks: PackedMasks, refiners: Sequence[PartSpec], emit: Callable[[Event], None]
) -> None:
    """Let refiners train all kept weights of a pruned model in place, in their order.

    A process that is killed here begins this anew: nothing is drawn at random, so it comes to the same weights.

    :param dense: What each block returned while it was dense.
    """
    layers = [layer for _, layer in dense.anatomy.layers() if layer.name in plan.layers]
    oriented = {layer.name: layer.oriented(masks[layer.name]) for layer in layers}
    view = ModelView(dense, layers, oriented)
    with view.opened():
        for refiner in refiners:
            refine(view, refiner, emit)
