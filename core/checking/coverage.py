"""Find what a forward multiplies by and an adapter does not list: a tower, blocks of a stack, matrices of a block."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from ecoflap.core.checking.uses import Uses
from ecoflap.core.errors import cut, first_of, nearest
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.core.model.kept_parts import is_connector, is_router, kept_outside
from ecoflap.core.model.never_pruned import why_left_out

ForgottenKind = Literal["stack", "blocks", "matrix", "outside", "no matrix"]


@dataclass(frozen=True)
class Forgotten:
    """Names something that runs and is no layer, or a layer that is no matrix.

    :param kind: A whole ``stack`` of blocks; some ``blocks`` of one whose others are in a tower; a ``matrix`` in the
        blocks of a tower; a matrix ``outside`` all blocks; or a layer that is ``no matrix``.
    :param size: How many weights that is.
    :param sentence: Says so, and what the adapter should have said.
    """

    kind: ForgottenKind
    size: int
    sentence: str


@dataclass(frozen=True)
class Coverage:
    """Holds an adapter's layers beside all matrices that were multiplied by.

    :param anatomy: With every matrix outside the blocks that the adapter offers.
    :param left_out: By parameter or block, why the adapter leaves it out on purpose.
    """

    model: nn.Module
    anatomy: Anatomy
    left_out: Mapping[str, str]
    uses: Uses

    def forgotten(self) -> Iterator[Forgotten]:
        """Yield what ran and is not covered. Matrices of one name in many blocks are told as one, as blocks are."""
        stacks: dict[str, list[str]] = {}
        inside: dict[tuple[str, str], list[str]] = {}
        for name in self._uncovered:
            block, stack = self._block_of(name), self._stack_of.get(name)
            if block is not None:
                inside.setdefault((block.tower, name.removeprefix(block.name)), []).append(name)
            elif stack is not None:
                stacks.setdefault(stack, []).append(name)
        yield from (self._stack(stack, names) for stack, names in stacks.items())
        yield from (self._matrix(names) for names in inside.values())
        yield from self._outside()
        yield from self._no_matrices()

    def nowhere(self) -> Iterator[str]:
        """Say which of the names that are left out on purpose the model has not, so that nothing is kept by them."""
        there = {name for name, _ in (*_named(self.model), *self.model.named_modules(remove_duplicate=False))}
        for name in self.left_out:
            if name not in there:
                said = f"left_out() names {cut(name)!r}, which is no module and no parameter of the model"
                yield f"{said}.{nearest(name, there)}"

    def shares(self) -> tuple[int, int]:
        """Count the weights that are layers' in blocks, and those of all matrices in blocks that ran.

        Matrices outside the blocks that the adapter offers are not among them.
        """
        found = ((name, self._block_of(name)) for name in self._matrices)
        mine = [name for name, block in found if block and not self.anatomy.is_outside(block)]
        in_blocks = {*mine, *(name for name in self._matrices if name in self._stack_of)}
        return sum(map(self._covered, in_blocks)), sum(self._parameters[name].numel() for name in in_blocks)

    @cached_property
    def _parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @cached_property
    def _matrices(self) -> list[str]:
        """Name every parameter that was multiplied by as a matrix, or as many of them."""
        used = (name for name, parameter in self._parameters.items() if self.uses.as_matrix(parameter))
        return [name for name in used if sum(axis > 1 for axis in self._parameters[name].shape) > 1]

    @cached_property
    def _uncovered(self) -> list[str]:
        others = (
            name for name in self._matrices if not (why_left_out(name, self.left_out) or is_router(self.model, name))
        )
        return [name for name in others if self._missing(name)]

    @cached_property
    def _layers(self) -> Mapping[int, list[Layer]]:
        """Give the layers by the parameter that each is, or is a part of."""
        found: dict[int, list[Layer]] = {}
        for _, layer in self.anatomy.layers():
            found.setdefault(id(layer.parameter), []).append(layer)
        return found

    @cached_property
    def _blocks(self) -> Mapping[int, Block]:
        """Give the block of every module inside one."""
        return {id(module): block for block in self.anatomy.blocks for module in block.module.modules()}

    @cached_property
    def _stack_of(self) -> Mapping[str, str]:
        """Give the stack that a parameter is in: the outermost whose blocks are not made of an adapter's blocks."""
        mine = {id(block.module) for block in self.anatomy.blocks}
        found: dict[str, str] = {}
        for stack, blocks in _stacks(self.model):
            inside = (part for block in blocks.values() for part in block.modules() if part is not block)
            if not any(id(part) in mine for part in inside):
                names = (f"{stack}.{number}.{name}" for number, one in blocks.items() for name, _ in _named(one))
                found |= {name: stack for name in names if name not in found}
        return found

    def _covered(self, name: str) -> int:
        return sum(layer.size for layer in self._layers.get(id(self._parameters[name]), ()))

    def _missing(self, name: str) -> int:
        return self._parameters[name].numel() - self._covered(name)

    def _block_of(self, name: str) -> Block | None:
        return self._blocks.get(id(self.model.get_submodule(name.rpartition(".")[0])))

    def _stack(self, stack: str, names: Sequence[str]) -> Forgotten:
        blocks = dict(self.model.get_submodule(stack).named_children())
        which = list(dict.fromkeys(name.removeprefix(f"{stack}.").partition(".")[0] for name in names))
        size = sum(map(self._missing, names))
        holds = f"{len(names)} matrices of {size:,} weights"
        if not any(id(block) in self._blocks for block in blocks.values()):
            kind = type(blocks[which[0]]).__name__
            cure = "towers() should name it; with prunable=False it is kept unless a recipe includes it"
            said = f"{stack} runs and is in no tower: {len(which)} blocks of {kind} with {holds}; {cure}"
            return Forgotten("stack", size, said)
        count = f"{len(which)} of its {len(blocks)} blocks"
        said = f"{stack}: {count} run and are in no tower ({first_of(which, 4)}), with {holds}"
        return Forgotten("blocks", size, f"{said}; towers() should name all that run")

    def _matrix(self, names: Sequence[str]) -> Forgotten:
        first, size = names[0], sum(map(self._missing, names))
        shape, others = self._parameters[first].shape, len(names) - 1
        if len(shape) == 2:
            said = f"{first} is a matrix that layers() does not list"
        else:
            listed = "some of which layers() does not list" if self._covered(first) else "which layers() does not list"
            said = f"{first} holds {shape[:-2].numel()} matrices of {shape[-2]}×{shape[-1]}, {listed}"
        alike = f", nor its like in {others} other blocks" if others else ""
        return Forgotten("matrix", size, f"{said}{alike} ({size:,} weights); left_out() may say why it is kept")

    def _outside(self) -> Iterator[Forgotten]:
        for name in self._uncovered:
            if self._block_of(name) is None and name not in self._stack_of and kept_outside(self.model, name) is None:
                cure = "Tower.of_matrix in towers() offers it, and left_out() says why it is kept"
                said = f"{name} is a matrix that runs outside the blocks and in no tower; {cure}"
                yield Forgotten("outside", self._missing(name), said)

    def _no_matrices(self) -> Iterator[Forgotten]:
        for _, layer in self.anatomy.layers():
            if self._is_no_matrix(layer.parameter):
                why = "it is added or looked up, or it scales, as biases, embeddings and norms with two axes do"
                said = f"{layer.name} is listed by layers(), and nothing is multiplied by it as by a matrix: {why}"
                yield Forgotten("no matrix", layer.size, said)

    def _is_no_matrix(self, parameter: nn.Parameter) -> bool:
        return self.uses.at_all(parameter) and not self.uses.as_matrix(parameter)


def _named(block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name a module's parameters by every name, also those that the model lists under another one first."""
    return block.named_parameters(remove_duplicate=False)


def _stacks(model: nn.Module) -> Iterator[tuple[str, dict[str, nn.Module]]]:
    """Yield each list of like blocks that hold matrices, the outer before the inner, with its blocks by number.

    A list of connectors, one for each of several outputs, is none.
    """
    for name, module in model.named_modules():
        if name and isinstance(module, nn.ModuleList | nn.Sequential) and not is_connector(name):
            blocks = {number: block for number, block in module.named_children() if _holds_matrices(block)}
            if len({type(block) for block in blocks.values()}) == 1:
                yield name, blocks


def _holds_matrices(block: nn.Module) -> bool:
    has_parts = next(block.children(), None) is not None
    return has_parts and any(parameter.ndim > 1 for parameter in block.parameters())
