"""Describe a model as an adapter takes it apart: into towers, blocks and layers, by name and without mathematics."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ecoflap.core.errors import ModelError, nearest, unknown
from ecoflap.core.model.mapped_weights import MappedWeights

Layout = Literal["batch token", "token batch", "selected", "routed"]
"""How a layer's input is laid out before its last axis.

``selected`` is rows that the model or its loss has picked, all of them real: the one vector of an image that a
projection reads, the positions that a head predicts at. ``routed`` is rows that a router has picked from all positions
of the tower, padding among them, and in some batches none: what an expert reads.
"""

Part = int | tuple[int, int]
"""Which part of a parameter a layer is, along its first axis: one of several matrices, or rows from … to before …"""


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
    :param mapped: Takes the places of the weights where they are to stay in files, because the model is larger than
        memory. None reads them into memory, as far as the model's library does.
    :param with_processor: Whether an adapter's ``load`` is to read the processor too. Where nobody can reach that, a
        large tokenizer would take more memory than a small model for nothing.
    """

    name: str
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    model: nn.Module | None = None
    loaded: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    mapped: MappedWeights | None = field(default=None, compare=False, repr=False)
    with_processor: bool = True


@dataclass(frozen=True, eq=False)
class Layer:
    """Names one prunable matrix of shape ``[out, in]`` and the module that holds it.

    :param name: The parameter's name in ``model.state_dict()``: the key everywhere. A part of a parameter has the
        number behind it, ``experts.down_proj[3]``, or its rows, ``in_proj_weight[0:64]``.
    :param module: The module that owns it. The parameter is looked up there each time, never kept.
    :param attribute: Its name in that module: ``weight``, or ``in_proj_weight`` of a packed attention.
    :param reads: The tower whose tokens its input holds; empty for its own. Cross-attention's k and v read ``encoder``.
    :param layout: How its input is laid out before the last axis.
    :param part: Which part of the parameter it is; None for all of it.
    :param transposed: Whether the model holds it as ``[in, out]``, as GPT-2 does.
    :param of_experts: What the same matrix of all experts is called, ``experts.*.w1.weight``, where each expert has
        modules of its own; parts of one parameter are known by that.
    """

    name: str
    module: nn.Module
    attribute: str = "weight"
    reads: str = ""
    layout: Layout = "batch token"
    part: Part | None = None
    transposed: bool = False
    of_experts: str = ""

    @property
    def parameter(self) -> nn.Parameter:
        """Give the parameter that the matrix is, or is a part of, as the module has it now.

        :raises ModelError: Where the module has no parameter of this name.
        """
        parameter = getattr(self.module, self.attribute, None)
        if not isinstance(parameter, nn.Parameter):
            kind = type(self.module).__name__
            raise ModelError(
                f"the layer {self.name} is no parameter: its module, a {kind}, has none named {self.attribute!r}. The "
                f"adapter's `layers` should name a parameter"
            )
        return parameter

    @property
    def weight(self) -> Tensor:
        """Give the matrix ``[out, in]`` as the module has it now: the parameter itself, or a view of it."""
        parameter = self.parameter
        return parameter if self.part is None and not self.transposed else self.matrix_of(parameter)

    @property
    def shape(self) -> tuple[int, int]:
        """Say how many outputs and inputs it has."""
        shape = self.weight.shape
        if len(shape) != 2:
            raise ModelError(
                f"the layer {self.name} is {tuple(shape)} and no matrix. Of a parameter of three axes each matrix is a "
                f"layer of its own, with its number as `part`"
            )
        return shape[0], shape[1]

    @property
    def size(self) -> int:
        """Say how many weights it has."""
        return self.weight.numel()

    def matrix_of(self, parameter: Shaped[Tensor, "..."]) -> Shaped[Tensor, "out in"]:
        """Give this layer's ``[out, in]`` of a tensor that is shaped as its parameter, such as a gradient; a view."""
        return self.oriented(parameter if self.part is None else part_of(parameter, self.part))

    def oriented(self, stored: Shaped[Tensor, "..."]) -> Shaped[Tensor, "out in"]:
        """Turn a tensor that lies as the parameter does, such as a mask that was saved, into ``[out, in]``; a view."""
        return stored.T if self.transposed else stored

    def as_stored(self, matrix: Shaped[Tensor, "out in"]) -> Shaped[Tensor, "..."]:
        """Turn ``[out, in]`` so that it lies as the parameter does; a view."""
        return matrix.T if self.transposed else matrix


def part_of(parameter: Shaped[Tensor, "..."], part: Part) -> Shaped[Tensor, "..."]:
    """Give a part of a parameter, or of a tensor of its shape; a view."""
    return parameter[part] if isinstance(part, int) else parameter[part[0] : part[1]]


@dataclass(frozen=True, eq=False)
class Block:
    """Names what is run, recorded and pruned as one: a transformer block, or a single matrix outside the blocks.

    :param name: The module's name in the model, such as ``model.layers.3``.
    :param calls: How often one forward of the model calls it. None is any number, for a head that is applied in
        chunks: only the last block of a model may be such, because nothing is recorded of it.
    :param tapped: Whether its output is used by more than the block after it, so that it is kept as long as the run
        lasts: a model may give the language tower what several blocks of its vision tower gave.
    """

    name: str
    module: nn.Module
    tower: str
    calls: int | None = 1
    tapped: bool = False


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


Named = TypeVar("Named", Tower, Block, Layer)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Holds a whole model taken apart.

    :param towers: In the order they run.
    :param layers_of: The layers of each block, by its name, in the order they run.
    """

    towers: tuple[Tower, ...]
    layers_of: Mapping[str, tuple[Layer, ...]]

    @classmethod
    def of(cls, towers: Any, layers: Callable[[Block], Any], include: Container[str] | None = ()) -> "Anatomy":
        """Make the anatomy of what an adapter gives, which comes from anywhere and is held to what it should be.

        :param towers: The adapter's ``towers(model)``.
        :param layers: The adapter's method.
        :param include: Names of the matrices outside the blocks that are wanted; the others are left out. None is all.
        :raises ModelError: Where there is no layer, or a weight is listed twice.
        """
        listed = _held("`towers`", towers, Tower)
        for tower in listed:
            _refuse_other_towers(tower, _held(f"tower {tower.name!r}", tower.blocks, Block))
        _refuse_twins(listed)
        wanted = tuple(tower for tower in listed if not tower.outside or include is None or tower.name in include)
        blocks = [block for tower in wanted for block in tower.blocks]
        layers_of = {block.name: _held("`layers`", layers(block), Layer) for block in blocks}
        for block in blocks:
            _refuse_wrong_places(layers_of[block.name])
            _refuse_other_names(block, layers_of[block.name])
        anatomy = cls(wanted, layers_of)
        _refuse_repeats([layer for _, layer in anatomy.layers()])
        return anatomy

    def refuse_unnamed(self, model: nn.Module) -> None:
        """Refuse layers of names that no parameter of the model has: they would not be found in what is saved.

        :raises ModelError: With each such block, and a name that its first layer might be meant to have.
        """
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        known, problems = set(names), dict[str, str]()
        for block, layer in self.layers():
            name = layer.name.split("[")[0]
            if name not in known and block.name not in problems:  # to look for the nearest takes a while
                problems[block.name] = (
                    f"the adapter lists a layer by the name {name}, of the block {block.name!r}.{nearest(name, names)} "
                    f"The model has no parameter of that name, by which plans, masks and files go"
                )
        if problems:
            raise ModelError(*problems.values())

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Give the blocks of all towers, in the order they run."""
        return tuple(block for tower in self.towers for block in tower.blocks)

    def is_outside(self, block: Block) -> bool:
        """Say whether a block is a single matrix outside the blocks."""
        return any(tower.outside for tower in self.towers if tower.name == block.tower)

    @property
    def dtype(self) -> torch.dtype:
        """Give the type that most weights of its layers are in: those of one tower may be in another than the rest."""
        sizes: Counter[torch.dtype] = Counter()
        for _, layer in self.layers():
            sizes[layer.parameter.dtype] += layer.size
        return sizes.most_common(1)[0][0]

    def layers(self, blocks: Sequence[Block] | None = None) -> Iterator[tuple[Block, Layer]]:
        """Yield each layer with its block, in the order the blocks run.

        :param blocks: Of these blocks only; by default of all.
        """
        for block in self.blocks if blocks is None else blocks:
            for layer in self.layers_of[block.name]:
                yield block, layer


def _held(whose: str, given: Any, kind: type[Named]) -> tuple[Named, ...]:
    """Give what an adapter lists, where it is what it should be.

    :param whose: What of the adapter lists it.
    :param kind: What each of them should be.
    """
    if not isinstance(given, Iterable):
        raise ModelError(f"the adapter's {whose} gives {_a(given)}, and no {kind.__name__}s")
    found = tuple(given)
    for one in found:
        if not isinstance(one, kind):
            raise ModelError(f"the adapter's {whose} gives {_a(one)} where a {kind.__name__} is wanted")
        if not isinstance(one.name, str):
            raise ModelError(
                f"the adapter's {whose} gives a {kind.__name__} of the name {one.name!r}, which is no text"
            )
    return found


def _a(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"


def _refuse_other_towers(tower: Tower, blocks: Sequence[Block]) -> None:
    """Refuse a block that says it is of another tower than the one that lists it."""
    for block in blocks:
        if block.tower != tower.name:
            raise ModelError(
                f"the adapter lists the block {block.name} in the tower {tower.name!r}, and its `tower` is "
                f"{block.tower!r}: both should be the same"
            )


def _refuse_twins(towers: Sequence[Tower]) -> None:
    """Refuse towers of one name, and blocks, for all that is learnt of them goes by that."""
    for kind, names in (("tower", [one.name for one in towers]), ("block", [b.name for t in towers for b in t.blocks])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelError(f"the adapter lists two {kind}s named {twice[0]!r}: each should have a name of its own")


def _refuse_wrong_places(layers: Sequence[Layer]) -> None:
    """Refuse a layer whose part its parameter does not have, or whose input lies in no way that there is."""
    for layer in layers:
        if layer.layout not in get_args(Layout):
            raise ModelError(f"the layer {layer.name}: {unknown('layout', str(layer.layout), get_args(Layout))}")
        rows, size = _rows(layer), len(layer.parameter)
        if layer.part is not None and not (0 <= rows.start < rows.stop <= size):
            raise ModelError(
                f"the layer {layer.name} is the part {layer.part} of a parameter that has {size} along its first axis, "
                f"counted from 0"
            )


def _refuse_other_names(block: Block, layers: Sequence[Layer]) -> None:
    """Refuse a layer of another name than its parameter has, by which it would be looked for in what is saved.

    Of a layer inside of a block what stands behind the block's name is looked at, for a block may be called anything.
    """
    paths: dict[int, list[str]] = {}
    for path, module in block.module.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    for layer in layers:
        inside = [f"{path}.{layer.attribute}" if path else "" for path in paths.get(id(layer.module), ())]
        names = [".".join(filter(None, (block.name, path or layer.attribute))) for path in inside]
        given = layer.name.split("[")[0]
        is_one = any(path and f".{given}".endswith(f".{path}") for path in inside)
        if names and not is_one and given not in names:
            raise ModelError(
                f"the adapter lists a layer by the name {layer.name}, and its parameter is called {names[0]}: plans, "
                f"masks and files go by that"
            )


def _refuse_repeats(layers: Sequence[Layer]) -> None:
    """Refuse a weight that is listed twice, for it would be counted and pruned twice."""
    if not layers:
        raise ModelError("the adapter finds no prunable layer in this model: its `towers` and `layers` name none")
    names: set[str] = set()
    listed: dict[int, list[tuple[range, str]]] = {}
    for layer in layers:
        rows, others = _rows(layer), listed.setdefault(id(layer.parameter), [])
        first = next((name for other, name in others if rows.start < other.stop and other.start < rows.stop), None)
        if first is None and layer.name in names:
            raise ModelError(
                f"the adapter lists two layers by the name {layer.name}: each has that of its parameter in the model's "
                f"state_dict(), its block's before it"
            )
        if first is not None:
            raise ModelError(
                f"the adapter lists one weight twice, as {first} and as {layer.name}. It should be listed once"
            )
        names.add(layer.name)
        others.append((rows, layer.name))


def _rows(layer: Layer) -> range:
    """Say which places of its parameter's first axis a layer takes up."""
    if layer.part is None:
        return range(len(layer.parameter))
    return range(layer.part, layer.part + 1) if isinstance(layer.part, int) else range(*layer.part)
