"""Find towers, and the prunable matrices of their blocks by the modules that own them."""

from collections.abc import Callable, Iterator

from torch import nn

from ecoflap.adapters.shared.members import member
from ecoflap.core.model.anatomy import Block, Layer, Layout, Tower


def tower_at(model: nn.Module, path: str, name: str, *, calls: int = 1, prunable: bool = True) -> Tower:
    """Make a tower of the blocks that a model has in one list.

    :param path: The list's: ``model.layers``.
    :param calls: How often each block runs in one forward.
    :param prunable: False for a tower that is kept unless a recipe includes it.
    :raises ModelError: Where the model has no such list.
    """
    blocks = tuple(Block(f"{path}.{i}", block, name, calls) for i, block in enumerate(member(model, path)))
    return Tower(name, blocks, prunable=prunable)


def matrices(
    block: Block, reads: Callable[[str], str] = lambda name: "", layout: Layout = "batch token"
) -> Iterator[Layer]:
    """Yield every ``nn.Linear`` of a block, and both matrices of each ``nn.MultiheadAttention``, as they are defined.

    :param reads: Tells, from a module's name in the block, the tower whose tokens it reads; empty for the block's own.
    :param layout: That of the inputs of every ``nn.Linear``; an ``nn.MultiheadAttention`` turns its own to ``token
        batch``.
    """
    inside: set[str] = set()
    for name, module in block.module.named_modules():
        path = ".".join(filter(None, (block.name, name)))
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield Layer(f"{path}.in_proj_weight", module, "in_proj_weight", reads(name), "token batch")
            yield Layer(f"{path}.out_proj.weight", module.out_proj, "weight", reads(name), "token batch")
            inside.add(f"{name}.out_proj")
        elif isinstance(module, nn.Linear) and name not in inside:
            yield Layer(f"{path}.weight", module, "weight", reads(name), layout)


def matrix_outside(block: Block, reads: str = "", layout: Layout = "selected") -> list[Layer]:
    """Give the one layer of a block that is a single linear module outside the blocks."""
    return [Layer(f"{block.name}.weight", block.module, "weight", reads, layout)]
