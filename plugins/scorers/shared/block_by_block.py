"""Scorers that look at one block after the other walk the model in the same way."""

from collections.abc import Iterator, Sequence

from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer


def block_by_block(
    replay: Replay, layers: Sequence[Layer], *, runs: bool = True
) -> Iterator[tuple[int, Block, list[Layer]]]:
    """Yield each block that has some of the layers, with its number and those layers.

    The replay can run the block when it is yielded, and is moved on behind it afterwards. Nothing behind the last of
    the layers is run.

    :param runs: False for a scorer that runs no block, so that nothing is.
    """
    wanted = {layer.name for layer in layers}
    for index, block in enumerate(replay.blocks):
        own = [layer for layer in replay.anatomy.layers_of[block.name] if layer.name in wanted]
        if own:
            yield index, block, own
        wanted.difference_update(layer.name for layer in own)
        if not wanted:
            return
        if runs:
            replay.advance(index)
