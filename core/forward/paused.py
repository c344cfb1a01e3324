"""Forwards of one block that run together, each paused before the product with a matrix that is to be pruned first.

A layer that sees what pruned ones before it give has to wait for them. If the block is run anew for each group of
layers that share an input, that is a forward for each group and batch, and one more for what the block gives then.
Paused, it is one in all: each batch's forward is a greenlet, which gives way where it comes to a matrix that is not
pruned yet.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.capture import Matrices, linear_seen
from ecoflap.core.forward.nested import tensors_in
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.core.forward.walk import BlockWatch, Finished
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.seeding import GeneratorStates


class Begun(BlockWatch):
    """Ends a forward where a block would begin, and keeps what it takes to run the block from there."""

    run: Callable[[], Any]
    states: GeneratorStates

    def __init__(self) -> None:
        self.can_wait = False
        with torch.no_grad():  # as forwards run: what else differs in the block is a context of the model's own
            self._outside = _context()

    def around(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """Keep the call, and end the forward."""
        self.run, self.states = run, GeneratorStates.now()
        # What blocks leave for each other in a mapping is recorded by the walk, which is over when the block runs; and
        # so is a context of the model's own around its blocks.
        is_shared = any(isinstance(value, MutableMapping) for value in (*args, *kwargs.values()))
        self.can_wait = not is_shared and _context() == self._outside
        raise Finished


class _Paused:
    """Is the forward of one batch: how far it has come, and with what.

    :param begun: The call of the block.
    """

    def __init__(self, begun: Begun) -> None:
        self._greenlet, self._states = greenlet(begun.run), begun.states
        self._told: dict[str, ReferenceType[Tensor]] = {}  # by the names of layers to come, the inputs that were told
        self.at: Layer | None = None  # the layer that it waits for
        self.inputs: Tensor | None = None  # and what that is fed
        self.output: Any = None

    def go_on(self) -> None:
        """Run to the next layer that is to be waited for, or to the end."""
        self.at = self.inputs = None
        outside = GeneratorStates.now()
        self._states.restore()
        try:
            result = self._greenlet.switch()
        finally:
            self._states = GeneratorStates.now()
            outside.restore()
        if self._greenlet.dead:
            self.output = result

    def tell(self, group: Sequence[Layer]) -> tuple[list[Layer], Tensor]:
        """Give the input that it waits with as that of some layers, and these with the one that it is at first."""
        assert self.at is not None
        assert self.inputs is not None
        self._told.update(dict.fromkeys((layer.name for layer in group), ref(self.inputs)))
        return [self.at, *(layer for layer in group if layer is not self.at)], self.inputs

    def meet(self, layer: Layer, inputs: Tensor, is_pruned: bool) -> None:
        """Give way before a product, from within the forward, until the layer is pruned."""
        if not is_pruned:
            self.at, self.inputs = layer, inputs
            engine = getcurrent().parent
            assert engine is not None  # a forward runs in its own greenlet
            engine.switch()
        told = self._told.pop(layer.name, None)
        if told is None or told() is not inputs:
            raise ModelError(
                f"{layer.name} is fed otherwise in some batches than in the first, so that it cannot be pruned in its "
                f"turn. Leave out sequential"
            )

    def close(self) -> None:
        """Leave the forward where it is."""
        if self._greenlet:
            self._greenlet.throw()
        self.at = self.inputs = None


class PausedForwards:
    """The forwards of a block on several batches, which come to its layers together.

    They stay in step as long as each comes to the same layers in the same order, by ``F.linear``, and outside of any
    context that the others would then run in, such as an autocast of the model's own. Where one does not, all are
    ended, and whoever wants the inputs of layers that are left, or what the block gives, runs it anew.

    :param layers: All layers of the block.
    :param waits_for: Those that are to be pruned before their product is computed.
    :param begun: The block's call on each batch, by its number; none where forwards of this block cannot wait.
    :param running: Gives the context in which the model runs.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        waits_for: Sequence[Layer],
        begun: Mapping[int, Begun],
        running: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._layers, self._running = layers, running
        self._is_pruned = dict.fromkeys((layer.name for layer in waits_for), False)
        can_wait = all(one.can_wait for one in begun.values())
        self._forwards = {number: _Paused(one) for number, one in begun.items()} if can_wait else {}

    def __enter__(self) -> "PausedForwards":
        return self

    def __exit__(self, *raised: object) -> None:
        self._end()

    def come_to(self, group: Sequence[Layer]) -> bool:
        """Let each go on to the first of some layers that share an input, and say whether all did.

        All layers that they have waited for are pruned now.
        """
        names = {layer.name for layer in group}
        is_there = self._go_on(lambda at: at is not None and at.name in names)
        self._is_pruned.update(dict.fromkeys(names, True))  # when they go on next
        return is_there

    def finish(self) -> bool:
        """Let each go on to its end, and say whether all did. All layers are pruned now."""
        return self._go_on(lambda at: at is None)

    def inputs(self, number: int, group: Sequence[Layer]) -> tuple[list[Layer], Tensor]:
        """Give the layers that the forward of a batch has come to, in the order it does, and their input."""
        return self._forwards[number].tell(group)

    def outputs(self) -> Iterator[tuple[int, Any]]:
        """Yield what the block has returned on each batch, by its number, and forget it."""
        while self._forwards:
            number = next(iter(self._forwards))
            yield number, self._forwards.pop(number).output

    def _go_on(self, is_there: Callable[[Layer | None], bool]) -> bool:
        """Let each go on; where one does not come where it should, end all."""

        def see(layer: Layer, inputs: Tensor) -> None:
            if layer.name in self._is_pruned:
                forward.meet(layer, inputs, self._is_pruned[layer.name])

        with self._running(), linear_seen(Matrices(self._layers), see):
            for forward in self._forwards.values():
                context = _context()
                forward.go_on()
                if not is_there(forward.at) or _context() != context:
                    self._end()
                    return False
        return bool(self._forwards)

    def _end(self) -> None:
        while self._forwards:
            self._forwards.popitem()[1].close()


def may_pause(block: Block, layers: Sequence[Layer], placement: Placement) -> bool:
    """Say whether forwards of a block may wait for some of its layers.

    They call the block once, behind its own hooks, and with the very tensors that are pruned meanwhile; and which
    tokens an expert is given is not known before its router has run.
    """
    is_called_once = block.calls == 1 and not block.module._forward_hooks
    return is_called_once and placement.leaves(tensors_of(block.module)) and all(x.layout != "routed" for x in layers)


class ProductsSeen(TorchDispatchMode):
    """Looks at a forward at each product with a block's layers: is it ``F.linear``, and what was made and is held then.

    :ivar most: The most bytes that it held.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._count: Counter[str] = Counter()
        self._made: dict[StorageWeakRef, int] = {}
        self.most = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what a model has compiled run as it is compiled."""
        return True

    @contextmanager
    def looking(self, layers: Sequence[Layer]) -> Iterator[None]:
        """Look at what runs meanwhile, where all layers of the block are in their places."""
        with linear_seen(Matrices(layers), self._see), self:
            yield

    def are_linear_once(self, layers: Sequence[Layer]) -> bool:
        """Say whether each of some layers was multiplied once, by ``F.linear``."""
        return all(self._count[layer.name] == 1 for layer in layers)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = _storages([*args, *(kwargs or {}).values()])
        self._made |= {storage: size for storage, size in _storages(made).items() if storage not in given}
        return made

    def _see(self, layer: Layer, inputs: Tensor) -> None:
        self._count[layer.name] += 1
        self._made = {storage: size for storage, size in self._made.items() if not storage.expired()}
        self.most = max(self.most, sum(self._made.values()))


def _storages(values: Any) -> dict[StorageWeakRef, int]:
    """Give the bytes of what tensors lie in. One that is sparse, or not on a device, has nothing of the kind."""
    storages = (tensor.untyped_storage() for tensor in tensors_in(values) if tensor.layout is torch.strided)
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


def _context() -> tuple[Any, ...]:
    """Give the states of this thread that a context of the model's own may change."""
    attention = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), autocast, attention
