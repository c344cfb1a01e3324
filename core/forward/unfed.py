"""Refuse layers of whose inputs none counts: what a method makes of nothing looks like any other mask."""

from collections.abc import Sequence

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer


def refuse_unfed(block: Block, unfed: Sequence[Layer]) -> None:
    """Refuse layers of a block that no token reached in any batch. Experts are pruned by their weights alone then.

    :raises ModelError: Naming the first, with the tower whose tokens it reads.
    """
    layer = next((one for one in unfed if one.layout != "routed"), None)
    if layer is not None:
        tower = layer.reads or block.tower
        raise ModelError(
            f"{layer.name}: no position of the tower it reads, {tower!r}, counts in any calibration batch, so nothing "
            f"is known of its inputs. Its adapter's `tokens` says which are padding, and the recipe's `tokens` which "
            f"others are left out"
        )
