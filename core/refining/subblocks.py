"""The sub-blocks of a block, such as its attention and its MLP, and what they are given and return while it runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import tensors_in
from ecoflap.core.model.anatomy import Block, Layer

Hidden = list[Float[Tensor, "..."]]
"""The hidden states that a block, or a sub-block, returned on one batch, call by call."""

Inside = dict[str, Hidden]
"""The hidden states that sub-blocks returned, by their names; one that was not called is not there."""


class SubBlock(NamedTuple):
    """Names a sub-block as a block is named, and the layers that are inside of it, in the order they run."""

    block: Block
    layers: tuple[Layer, ...]


def subblocks_of(block: Block, layers: Sequence[Layer]) -> tuple[SubBlock, ...]:
    """Find the sub-blocks of a block: the outermost modules inside of it that have a forward and hold layers.

    A list of modules has no forward, so that those in it are meant. What a block calls shows only when it runs.

    :param layers: Those that are looked for; of a block's other modules nothing is given.
    :return: In the order their first layers run; none where a layer is the block's own parameter, or all of them are in
        one module, for then the block is all that can be trained.
    """
    places = {id(layer.module): place for place, layer in reversed([*enumerate(layers)])}
    held = [(name, module, _inside(module, layers)) for name, module in _outermost(block.name, block.module, places)]
    if len(held) < 2 or sum(len(inside) for _, _, inside in held) < len(layers):
        return ()
    found = [SubBlock(Block(name, module, block.tower, block.calls), inside) for name, module, inside in held]
    return tuple(sorted(found, key=lambda one: places[id(one.layers[0].module)]))


def _outermost(name: str, module: nn.Module, owners: Mapping[int, int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules below one, each with its name, that hold an owner of layers; those without a forward are opened."""
    for child, inside in module.named_children():
        if any(id(one) in owners for one in inside.modules()):
            has_forward = type(inside).forward is not nn.Module.forward
            where = f"{name}.{child}"
            yield from [(where, inside)] if has_forward else _outermost(where, inside, owners)


def _inside(module: nn.Module, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    owners = {id(one) for one in module.modules()}
    return tuple(layer for layer in layers if id(layer.module) in owners)


@contextmanager
def outputs_inside(
    block: Block, subblocks: Sequence[SubBlock], keep: Callable[[Tensor], Tensor]
) -> Iterator[list[Inside]]:
    """Collect what sub-blocks return each time their block runs: a mapping for each of its calls.

    :param keep: Makes of a hidden state what is held of it: the block may write into its own.
    """
    seen: list[Inside] = []

    def see(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seen[-1].setdefault(name, []).append(keep(hidden_of(name, output)))

    with ExitStack() as hooks:
        begin = block.module.register_forward_pre_hook(lambda module, args: seen.append({}))
        hooks.callback(begin.remove)
        for one, _ in subblocks:
            hooks.callback(one.module.register_forward_hook(partial(see, one.name)).remove)
        yield seen


@contextmanager
def inputs_of(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """Call ``see`` with the arguments of each call of a module, before it runs."""
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: see(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def by_batch(seen: Sequence[Inside], calls: int) -> list[Inside]:
    """Join what was seen in so many calls of a block, which are those of one batch."""
    batches = [seen[at : at + calls] for at in range(0, len(seen), calls)]
    return [
        {name: [hidden for call in batch for hidden in call.get(name, ())] for call in batch for name in call}
        for batch in batches
    ]


def hidden_of(name: str, output: Any) -> Float[Tensor, "..."]:
    """Give the hidden states among what a block or a sub-block returned: its first tensor."""
    hidden = next(tensors_in(output), None)
    if hidden is None:
        raise ModelError(f"{name}: it returned no tensor, so there is nothing to hold against the dense block")
    return hidden
