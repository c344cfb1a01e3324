"""Describe a model as an adapter takes it apart: into towers, blocks and layers, by name and without mathematics."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from ecoflap.core.errors import ModelError

Layout = Literal["batch token", "token batch", "selected"]
"""How a layer's input is laid out before its last axis.

``selected`` is rows that the model or its loss has picked, all of them real: the one vector of an image that a
projection reads, the positions that a head predicts at.
"""


@dataclass(frozen=True)
class Source:
    """Says where a model comes from, opened no further than its configuration; adapters recognise it by this.

    :param name: As the recipe writes it: ``HuggingFaceTB/SmolLM2-135M``, ``./folder``, ``file.gguf``, ``package:NAME``.
    :param path: The folder or GGUF file on disk; None for a hub id or a model in memory.
    :param config: The model's ``config.json`` (or a GGUF header's equal) as a mapping; empty where there is none.
    :param files: Names of the files beside it, relative to its folder.
    :param model: A model in memory, given to :func:`ecoflap.run`.
    :param loaded: Takes what an adapter had to load with its weights although none were asked for, because the model's
        library builds it no other way. The adapter's next ``load`` of this same object takes it out, so that a run that
        planned by it does not load it twice. It is empty for every library that can do without.
    """

    name: str
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    model: nn.Module | None = None
    loaded: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Layer:
    """Names one prunable matrix of shape ``[out, in]`` and the module that holds it.

    :param name: The parameter's name in ``model.state_dict()``: the key everywhere.
    :param module: The module that owns it. The parameter is looked up there each time, never kept.
    :param attribute: Its name in that module: ``weight``, or ``in_proj_weight`` of a packed attention.
    :param reads: The tower whose tokens its input holds; empty for its own. Cross-attention's k and v read ``encoder``.
    :param layout: How its input is laid out before the last axis.
    """

    name: str
    module: nn.Module
    attribute: str = "weight"
    reads: str = ""
    layout: Layout = "batch token"

    @property
    def weight(self) -> nn.Parameter:
        """Give the matrix as the module has it now.

        :raises ModelError: Where the module has no parameter of this name.
        """
        weight = getattr(self.module, self.attribute, None)
        if not isinstance(weight, nn.Parameter):
            kind = type(self.module).__name__
            raise ModelError(
                f"the layer {self.name} is no parameter: its module, a {kind}, has none named {self.attribute!r}. The "
                f"adapter's `layers` should name a parameter"
            )
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """Say how many outputs and inputs it has."""
        out_features, in_features = self.weight.shape
        return out_features, in_features

    @property
    def size(self) -> int:
        """Say how many weights it has."""
        return self.weight.numel()


@dataclass(frozen=True, eq=False)
class Block:
    """Names what is run, recorded and pruned as one: a transformer block, or a single matrix outside the blocks.

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
    """Names blocks that run one after the other.

    :param name: ``vision``, ``qformer``, ``encoder``, ``decoder``, ``text`` or ``language``; that of a matrix outside
        the blocks is its module's.
    :param prunable: False where nothing is pruned unless a recipe asks for it, as in a Q-Former.
    :param outside: True for a single matrix outside the blocks, such as ``lm_head``. It is a tower of one block of one
        layer, stands at its place in the forward, and is left out of the anatomy unless a recipe includes it.
    """

    name: str
    blocks: tuple[Block, ...]
    prunable: bool = True
    outside: bool = False

    @classmethod
    def of_matrix(cls, model: nn.Module, name: str, *, calls: int | None = 1) -> "Tower":
        """Make the tower of one matrix outside the blocks.

        :param name: The name of the module that holds it.
        :param calls: As of a :class:`Block`.
        """
        return cls(name, (Block(name, model.get_submodule(name), name, calls),), prunable=False, outside=True)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Holds a whole model taken apart.

    :param towers: In the order they run.
    :param layers_of: The layers of each block, by its name, in the order they run.
    """

    towers: tuple[Tower, ...]
    layers_of: Mapping[str, tuple[Layer, ...]]

    @classmethod
    def of(
        cls, towers: Sequence[Tower], layers: Callable[[Block], Sequence[Layer]], include: Container[str] = ()
    ) -> "Anatomy":
        """Make the anatomy of what an adapter gives.

        :param towers: The adapter's ``towers(model)``.
        :param layers: The adapter's method.
        :param include: Names of the matrices outside the blocks that are wanted; the others are left out.
        :raises ModelError: Where there is no layer, or a weight is listed twice.
        """
        wanted = tuple(tower for tower in towers if not tower.outside or tower.name in include)
        layers_of = {block.name: tuple(layers(block)) for tower in wanted for block in tower.blocks}
        anatomy = cls(wanted, layers_of)
        _refuse_repeats([layer for _, layer in anatomy.layers()])
        return anatomy

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Give the blocks of all towers, in the order they run."""
        return tuple(block for tower in self.towers for block in tower.blocks)

    def layers(self, blocks: Sequence[Block] | None = None) -> Iterator[tuple[Block, Layer]]:
        """Yield each layer with its block, in the order the blocks run.

        :param blocks: Of these blocks only; by default of all.
        """
        for block in self.blocks if blocks is None else blocks:
            for layer in self.layers_of[block.name]:
                yield block, layer


def _refuse_repeats(layers: Sequence[Layer]) -> None:
    """Refuse a weight that is listed twice, for it would be counted and pruned twice."""
    if not layers:
        raise ModelError("the adapter finds no prunable layer in this model: its `towers` and `layers` name none")
    by_weight: dict[int, str] = {}
    names: set[str] = set()
    for layer in layers:
        first = by_weight.setdefault(id(layer.weight), layer.name)
        if first != layer.name or layer.name in names:
            raise ModelError(
                f"the adapter lists one weight twice, as {first} and as {layer.name}. It should be listed once"
            )
        names.add(layer.name)
