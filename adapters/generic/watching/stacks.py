"""Find the stacks of a model: its outermost lists of blocks that hold matrices."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Stack:
    """Names a list of blocks in a model.

    :param path: The list's: ``model.layers``.
    """

    path: str
    blocks: tuple[nn.Module, ...]

    @property
    def names(self) -> list[str]:
        """Name every block by its path in the model."""
        return [f"{self.path}.{number}" for number in range(len(self.blocks))]


def stacks_of(model: nn.Module) -> Iterator[Stack]:
    """Yield every list of modules that can be run and hold matrices, and that is in no other such list.

    A list of lists is none, for a list is not run: those inside are. So are the stages of some vision towers.
    """
    inside: set[int] = set()
    for path, module in model.named_modules():
        if id(module) in inside or not isinstance(module, nn.ModuleList | nn.Sequential) or not len(module):
            continue
        blocks = tuple(module)
        if _are_blocks(module, blocks):
            inside.update(id(one) for one in module.modules())
            yield Stack(path, blocks)


def _are_blocks(owner: nn.Module, blocks: tuple[nn.Module, ...]) -> bool:
    """Say whether modules are run one after the other as blocks: each has a forward, and matrices are inside.

    What runs as a sequence by itself is one only where its parts are of one kind and larger than a single layer.
    """
    if any(isinstance(block, nn.ModuleList | nn.ModuleDict) for block in blocks):
        return False
    if not any(_holds_matrix(module) for block in blocks for module in block.modules() if module is not block):
        return False
    return isinstance(owner, nn.ModuleList) or (len({type(block) for block in blocks}) == 1 and len(blocks) > 1)


def _holds_matrix(module: nn.Module) -> bool:
    """Say whether a module itself has a matrix, or several in one parameter."""
    if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
        return False
    return any(parameter.ndim in (2, 3) for parameter in module.parameters(recurse=False))
