"""The whole model's gradient, one layer at a time: never more than one layer's gradient and one block's activations."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import AdapterOptions
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch
from ecoflap.core.forward.placement import Placement, device_of, requiring_grad, tensors_of
from ecoflap.core.forward.walk import replaced_forwards
from ecoflap.core.model.anatomy import Anatomy, Block, Layer


def stream_gradients(
    model: nn.Module,
    adapter: Adapter,
    batch: Batch,
    anatomy: Anatomy,
    placement: Placement,
    visit: Callable[[Layer, Tensor], None],
) -> None:
    """Run one forward and backward of the loss, and call ``visit(layer, gradient)`` as each gradient is complete.

    An expert that no token of the batch reached has a gradient of zeros, whether it is a part of a parameter, which has
    one from the others, or a module of its own, of which torch knows nothing then.

    :param placement: How blocks are held, one at a time in the backward too.
    """
    layers = [layer for _, layer in anatomy.layers()]
    unreached = {layer.name: layer for layer in layers if layer.layout == "routed"}

    def reach(layer: Layer, gradient: Tensor) -> None:
        unreached.pop(layer.name, None)
        visit(layer, gradient)

    summed = _Summed([layer for block, layer in anatomy.layers() if block.calls != 1], reach)
    blocks, resident = anatomy.blocks, _Resident(placement)

    def checkpointed(_: int, block: Block) -> Callable[..., Any]:
        return _recomputed(block, resident, is_last=block is blocks[-1] and block.calls in (1, None))

    with (
        requiring_grad(model, layers),
        _visited(layers, summed.see),
        replaced_forwards(blocks, checkpointed),
        options_of(AdapterOptions, adapter).running(model),
        torch.enable_grad(),
        resident,
    ):
        loss = adapter.loss(model, batch)
        resident.backward = True
        loss.backward()
        summed.finish()
    for layer in unreached.values():
        visit(layer, torch.zeros_like(layer.weight))


class _Summed:
    """Sums the gradients of layers that run several times: a layer whose weights are brought in anew has one a call."""

    def __init__(self, layers: list[Layer], visit: Callable[[Layer, Tensor], None]) -> None:
        self._layers, self._visit = layers, visit
        self._sums: dict[str, Tensor | None] = dict.fromkeys(layer.name for layer in layers)

    def see(self, layer: Layer, gradient: Tensor) -> None:
        """Visit a gradient at once, or keep it until those of all calls are there."""
        if layer.name not in self._sums:
            self._visit(layer, gradient)
        else:
            before = self._sums[layer.name]
            self._sums[layer.name] = gradient if before is None else before + gradient

    def finish(self) -> None:
        for layer in self._layers:
            gradient = self._sums[layer.name]
            if gradient is not None:
                self._visit(layer, gradient)


class _Resident:
    """Holds one block where it runs: in the backward, until the block before it is recomputed."""

    def __init__(self, placement: Placement) -> None:
        self.placement, self._held, self.backward = placement, ExitStack(), False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def hold(self, block: Block) -> None:
        self._held.close()
        self._held.enter_context(self.placement.held(tensors_of(block.module)))

    def release(self) -> None:
        if not self.backward:
            self._held.close()


def _recomputed(block: Block, resident: _Resident, *, is_last: bool) -> Callable[..., Any]:
    """Make a block's forward keep its inputs only. The last one's backward comes first, so it keeps its activations."""
    original, home = block.module.forward, device_of(block.module)

    def held(*args: Any, **kwargs: Any) -> Any:
        resident.hold(block)
        output = resident.placement.call(home, original, args, kwargs)
        if not is_last:
            resident.release()
        return output

    def forward(*args: Any, **kwargs: Any) -> Any:
        if is_last:
            return held(*args, **kwargs)
        return checkpoint(held, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return forward


@contextmanager
def _visited(layers: list[Layer], visit: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    of: dict[int, list[Layer]] = {}
    for layer in layers:
        of.setdefault(id(layer.parameter), []).append(layer)

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        for layer in of[id(parameter)]:
            visit(layer, layer.matrix_of(parameter.grad))
        parameter.grad = None

    handles = [parts[0].parameter.register_post_accumulate_grad_hook(hook) for parts in of.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
