"""What an adapter hands over: a model taken apart into towers, blocks and layers, by name and without mathematics."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ecoflap.core.errors import ModelError

Layout = Literal["batch token", "token batch", "selected"]


@dataclass(frozen=True)
class Source:
    """Where a model comes from, opened no further than its configuration: adapters recognise it by this.

    :param name: As the recipe writes it: ``HuggingFaceTB/SmolLM2-135M``, ``./folder``, ``file.gguf``, ``package:NAME``.
    :param path: The folder or GGUF file on disk; None for a hub id or a model in memory.
    :param config: The model's ``config.json`` (or a GGUF header's equal) as a mapping; empty where there is none.
    :param files: Names of the files beside it, relative to its folder.
    :param model: A model in memory, given to :func:`ecoflap.run`.
    """

    name: str
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    model: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """One prunable matrix, seen as ``[out, in]``.

    :param name: The parameter's name in ``model.state_dict()``: the key everywhere.
    :param module: The module that owns it. The parameter is looked up there each time, never kept.
    :param attribute: Its name in that module: ``weight``, or ``in_proj_weight`` of a packed attention.
    :param reads: The tower whose tokens its input holds; empty for its own. Cross-attention's k and v read ``encoder``.
    :param layout: How its input is laid out before the last axis. ``selected`` is rows that the model or its loss has
        picked, all of them real: the one vector of an image that a projection reads, the positions a head predicts at.
    """

    name: str
    module: nn.Module
    attribute: str = "weight"
    reads: str = ""
    layout: Layout = "batch token"

    @property
    def weight(self) -> nn.Parameter:
        weight = getattr(self.module, self.attribute)
        assert isinstance(weight, nn.Parameter), self.name
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        out_features, in_features = self.weight.shape
        return out_features, in_features

    @property
    def size(self) -> int:
        return self.weight.numel()


@dataclass(frozen=True, eq=False)
class Block:
    """What is run, recorded and pruned as one: a transformer block, or a single matrix outside the blocks.

    :param name: The module's name in the model, such as ``model.layers.3``.
    :param calls: How often one forward of the model calls it. None is any number, for a head that is applied in
        chunks: only the last block of a model may be such, because nothing is recorded of it.
    """

    name: str
    module: nn.Module
    tower: str
    calls: int | None = 1


@dataclass(frozen=True, eq=False)
class Tower:
    """Blocks that run one after the other: ``vision``, ``qformer``, ``encoder``, ``decoder``, ``text`` or ``language``.

    :param prunable: False where nothing is pruned unless a recipe asks for it, as in a Q-Former.
    :param outside: True for a single matrix outside the blocks, such as ``lm_head``: a tower of one block of one layer
        that goes by the module's name, stands at its place in the forward, and is no block unless a recipe includes it.
    """

    name: str
    blocks: tuple[Block, ...]
    prunable: bool = True
    outside: bool = False

    @classmethod
    def of_matrix(cls, model: nn.Module, name: str, *, calls: int | None = 1) -> "Tower":
        """A matrix outside the blocks, by its module's name."""
        return cls(name, (Block(name, model.get_submodule(name), name, calls),), prunable=False, outside=True)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A whole model taken apart: its towers in the order they run, and the layers of each block."""

    towers: tuple[Tower, ...]
    layers_of: Mapping[str, tuple[Layer, ...]]

    @classmethod
    def of(
        cls, towers: Sequence[Tower], layers: Callable[[Block], Sequence[Layer]], include: Container[str] = ()
    ) -> "Anatomy":
        """From an adapter's ``towers(model)`` and ``layers``; refused if it has no layer, or names one twice.

        :param include: Names of the matrices outside the blocks that are wanted; the others are left out.
        """
        wanted = tuple(tower for tower in towers if not tower.outside or tower.name in include)
        layers_of = {block.name: tuple(layers(block)) for tower in wanted for block in tower.blocks}
        anatomy = cls(wanted, layers_of)
        _refuse_repeats([layer for _, layer in anatomy.layers()])
        return anatomy

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for tower in self.towers for block in tower.blocks)

    def layers(self, blocks: Sequence[Block] | None = None) -> Iterator[tuple[Block, Layer]]:
        """Each layer with its block, in the order the blocks run."""
        for block in self.blocks if blocks is None else blocks:
            for layer in self.layers_of[block.name]:
                yield block, layer


def _refuse_repeats(layers: Sequence[Layer]) -> None:
    """A weight that is listed twice would be counted and pruned twice."""
    if not layers:
        raise ModelError("the adapter finds no prunable layer in this model")
    by_weight: dict[int, str] = {}
    names: set[str] = set()
    for layer in layers:
        first = by_weight.setdefault(id(layer.weight), layer.name)
        if first != layer.name or layer.name in names:
            raise ModelError(f"the adapter lists one weight twice: {first} and {layer.name}")
        names.add(layer.name)
