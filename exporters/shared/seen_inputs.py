"""Run a pruned model block by block, and see what each pruned layer is fed."""

from collections.abc import Iterator, Sequence

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Batch, StatisticType
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer


def seen_inputs(
    pruned: PrunedModel, batches: Sequence[Batch], need: type[StatisticType]
) -> Iterator[tuple[Layer, StatisticType]]:
    """Yield each pruned layer that a token reached with a statistic of its inputs, block by block.

    :param need: The statistic's type.
    """
    anatomy = _anatomy(pruned)
    replay = Replay(pruned.model, pruned.adapter, batches, anatomy=anatomy, dtype=pruned.held_in, device=pruned.visits)
    with replay:
        for number, block in enumerate(replay.blocks):
            layers = [layer for layer in anatomy.layers_of[block.name] if layer.name in pruned.masks]
            seen = replay.run(number, (need,)) if layers else {}
            yield from ((layer, seen[layer.name][need]) for layer in layers if seen[layer.name].is_fed)
            if number + 1 < len(replay.blocks):
                replay.advance(number)


def _anatomy(pruned: PrunedModel) -> Anatomy:
    """Take the model apart, with those matrices outside its blocks that were pruned."""
    towers, layers = pruned.adapter.towers(pruned.model), pruned.adapter.layers
    outside = [
        tower.name
        for tower in towers
        if tower.outside and any(layer.name in pruned.masks for block in tower.blocks for layer in layers(block))
    ]
    return Anatomy.of(towers, layers, outside)
