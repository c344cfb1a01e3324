"""The prunable matrices of a block, found by the modules that own them."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ecoflap.core.model.anatomy import Block, Layer, Layout


def matrices(
    block: Block, reads: Callable[[str], str] = lambda name: "", layout: Layout = "batch token"
) -> Iterator[Layer]:
    """Every ``nn.Linear`` in a block, and both matrices of each ``nn.MultiheadAttention``, in the order of definition.

    :param reads: From a module's name in the block to the tower whose tokens it reads; empty for the block's own.
    :param layout: Of the inputs of what is no ``nn.MultiheadAttention``, which turns its own to ``token batch``.
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
    """The one layer of a block that is a single linear module outside the blocks."""
    return [Layer(f"{block.name}.weight", block.module, "weight", reads, layout)]


def part(model: nn.Module, path: str) -> Any:
    """A submodule untyped, since no base class declares which there are; None where there is none."""
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
