"""Where weights are while they are used, and how precisely; afterwards they are the very same tensors again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.disk.on_disk import matrix_on_disk
from ecoflap.core.forward.nested import map_tensors
from ecoflap.core.model.anatomy import Anatomy, Block, Layer


@dataclass(frozen=True)
class Placement:
    """How blocks are held while they run, one at a time.

    :param dtype: At least this precision; None leaves it. A tensor that is already as wide stays as it is: a perturbed
        float32 weight in a bfloat16 model is not touched again.
    :param device: Where blocks run; their inputs are brought along, and their outputs taken back to where the weights
        were, so that no more than one block is there. None runs each block where it is.
    :param keep_in: A folder on whose disk matrices lie that are held otherwise than they are; None for memory.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    keep_in: Path | None = None

    @contextmanager
    def held(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Hold parameters and buffers there; afterwards their storage is the old one, which nothing has written to."""
        moved = [tensor for tensor in tensors if self._is_elsewhere(tensor) or self._is_narrower(tensor)]
        originals = [tensor.data for tensor in moved]
        try:
            for tensor in moved:  # for which memory may not be enough
                tensor.data = self.brought(tensor.data)
            yield
        finally:
            for tensor, original in zip(moved, originals, strict=True):
                tensor.data = original

    def leaves(self, tensors: Iterable[Tensor]) -> bool:
        """Say whether these tensors are held as they are."""
        return not any(self._is_elsewhere(tensor) or self._is_narrower(tensor) for tensor in tensors)

    def brought(self, tensor: Tensor) -> Tensor:
        """Give a tensor as it is held, which is elsewhere or narrower."""
        # Moved first: otherwise it is widened where it was, and twice the bytes are moved.
        there = tensor.to(device=self.device)
        held = there.to(dtype=self.dtype) if self._is_narrower(there) else there
        return matrix_on_disk(held, self.keep_in)

    @contextmanager
    def module_held(self, module: nn.Module) -> Iterator[torch.device]:
        """Hold a module's parameters and buffers there, and say where they were."""
        home = device_of(module)
        with self.held(tensors_of(module)):
            yield home

    def call(self, home: torch.device, forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Call ``forward`` on the device: tensors among its arguments are brought there, and its output to ``home``."""
        if self.device is None:
            return forward(*args, **kwargs)
        there_args, there_kwargs = _on((args, dict(kwargs)), self.device)
        return _on(forward(*there_args, **there_kwargs), home)

    def run(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Call a block's ``forward`` with its weights held."""
        with self.module_held(module) as home:
            return self.call(home, forward, args, kwargs)

    def widened_bytes(self, tensors: Iterable[Tensor]) -> int:
        """Count the bytes of what holding these tensors makes anew, each of them once."""
        narrower = {id(tensor): tensor.numel() for tensor in tensors if self._is_narrower(tensor)}
        return sum(narrower.values()) * (self.dtype or torch.float32).itemsize

    def as_precise(self) -> "Placement":
        """Return a placement on the same device for what is looked at as precise as it is stored."""
        return replace(self, dtype=None)

    def in_place(self) -> "Placement":
        """Return a placement of the same precision for what is in no block and stays where it is."""
        return Placement(self.dtype)

    def _is_narrower(self, tensor: Tensor) -> bool:
        wanted = self.dtype
        return wanted is not None and tensor.is_floating_point() and tensor.element_size() < wanted.itemsize

    def _is_elsewhere(self, tensor: Tensor) -> bool:
        return self.device is not None and tensor.device != self.device


class HeldBlocks:
    """Keeps several blocks at once where and as precisely as a placement says, each until it is let go."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._held: dict[str, ExitStack] = {}

    def hold(self, blocks: Iterable[Block]) -> None:
        """Hold some blocks."""
        for block in blocks:
            self._held[block.name] = ExitStack()
            self._held[block.name].enter_context(self._placement.held(tensors_of(block.module)))

    def let_go(self, blocks: Iterable[Block]) -> None:
        """Let go of those of some blocks that are held."""
        for block in blocks:
            self._held.pop(block.name, ExitStack()).close()

    def has(self, blocks: Iterable[Block]) -> bool:
        """Say whether all of some blocks are held."""
        return all(block.name in self._held for block in blocks)


@contextmanager
def restored(layers: Sequence[Layer]) -> Iterator[None]:
    """Let layers' weights be written to for a while; afterwards they are the very same tensors as before.

    What is written to is a copy, so that of a weight that is mapped from a file nothing but its file is needed again.
    """
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    before = [parameter.data for parameter in parameters]
    for parameter, data in zip(parameters, before, strict=True):
        parameter.data = data.clone()
    try:
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


@contextmanager
def added(layer: Layer, dtype: torch.dtype, delta: Float[Tensor, "out in"]) -> Iterator[None]:
    """Give a layer's parameter its data in ``dtype`` with ``delta`` on the layer's matrix of it.

    A part is written in place and put back: its parameter may be that of a hundred experts, all perturbed at once. Of
    one that is mapped from a file those pages stay in memory, unless :func:`restored` holds a copy that they go with.
    """
    parameter = layer.parameter
    if layer.part is None:
        parameter.data = parameter.data.to(dtype, copy=True).add_(layer.as_stored(delta))
        del delta
        yield
        return
    parameter.data = parameter.data.to(dtype)
    matrix = layer.matrix_of(parameter.data)
    before = matrix.clone()
    matrix.add_(delta)
    del delta
    try:
        yield
    finally:
        matrix.copy_(before)


@contextmanager
def requiring_grad(module: nn.Module, layers: Iterable[Layer]) -> Iterator[None]:
    """Let the parameters of these layers require a gradient, and no other of a module's."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    for layer in layers:
        layer.parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module's weights are on."""
    return next((tensor.device for tensor in tensors_of(module)), torch.device("cpu"))


def tensors_of(module: nn.Module, *, recurse: bool = True) -> Iterator[Tensor]:
    """Yield a module's parameters and buffers, and those of its submodules unless told otherwise."""
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def outside_blocks(model: nn.Module, anatomy: Anatomy) -> list[Tensor]:
    """Give the tensors of modules in no tower's blocks; a weight tied to one inside, as an embedding, is among them.

    A matrix outside the blocks stays among them where it is included: models ask it for its type before it runs.
    """
    towers = [tower for tower in anatomy.towers if not tower.outside]
    inside = {id(module) for tower in towers for block in tower.blocks for module in block.module.modules()}
    outside = (module for module in model.modules() if id(module) not in inside)
    found = (tensor for module in outside for tensor in tensors_of(module, recurse=False))
    return list({id(tensor): tensor for tensor in found}.values())


@contextmanager
def outside_held(model: nn.Module, anatomy: Anatomy, placement: Placement) -> Iterator[None]:
    """Hold what is in no block as precisely as a placement says, but for what a block shares: blocks are written to."""
    written = {id(one) for block in anatomy.blocks for one in tensors_of(block.module)}
    with placement.in_place().held(one for one in outside_blocks(model, anatomy) if id(one) not in written):
        yield


@contextmanager
def replaced_forwards(
    blocks: Sequence[Block], forward_of: Callable[[int, Block], Callable[..., Any]]
) -> Iterator[None]:
    """Give each block another ``forward`` for a while, made by ``forward_of(index, block)``."""
    # It goes into the instance's __dict__, where another library's wrapper may already be.
    spaces = [block.module.__dict__ for block in blocks]
    before = [space.get("forward") for space in spaces]
    for index, (space, block) in enumerate(zip(spaces, blocks, strict=True)):
        space["forward"] = forward_of(index, block)
    try:
        yield
    finally:
        for space, forward in zip(spaces, before, strict=True):
            del space["forward"]
            if forward is not None:
                space["forward"] = forward


@contextmanager
def model_held(model: nn.Module, anatomy: Anatomy, placement: Placement, spare: int = 0) -> Iterator[None]:
    """Hold a model as a placement says while it runs, whoever calls its forward: each block for as long as that runs.

    What is in no block is held meanwhile as precisely, where it is.

    :param spare: Bytes of memory that may be spent on being quicker: where the model takes no more than that and stays
        where it is, all of it is held meanwhile.
    """
    if placement.device is None and placement.widened_bytes(tensors_of(model)) <= spare:
        with placement.held(tensors_of(model)):
            yield
        return
    with placement.in_place().held(outside_blocks(model, anatomy)), blocks_held(placement, anatomy.blocks):
        yield


@contextmanager
def blocks_held(placement: Placement, blocks: Sequence[Block]) -> Iterator[None]:
    """Hold each block as a placement says for as long as it runs, whoever calls the model's forward."""

    def forward_of(_: int, block: Block) -> Callable[..., Any]:
        original = block.module.forward
        return lambda *args, **kwargs: placement.run(block.module, original, args, kwargs)

    with replaced_forwards(blocks, forward_of):
        yield


def _on(values: Any, device: torch.device) -> Any:
    return map_tensors(values, lambda tensor: tensor.to(device))
