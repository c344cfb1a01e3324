"""The whole model's gradient, one layer at a time: never more than one layer's gradient and one block's activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoflap.core.budget.select import is_finite
from ecoflap.core.contracts.adapter_answers import loss_of
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, Statistics
from ecoflap.core.disk.on_disk import zeros_on_disk
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.forward.placement import Placement, device_of, replaced_forwards, requiring_grad, tensors_of
from ecoflap.core.model.anatomy import Anatomy, Block, Layer


def stream_gradients(
    model: nn.Module,
    adapter: Adapter,
    batch: Batch,
    anatomy: Anatomy,
    placement: Placement,
    visit: Callable[[Layer, Tensor], None],
    *,
    keep: bool = False,
) -> None:
    """Run one forward and backward of the loss, and call ``visit(layer, gradient)`` as each gradient is complete.

    An expert that no token of the batch reached has a gradient of zeros, whether it is a part of a parameter, which has
    one from the others, or a module of its own, of which torch knows nothing then.

    :param placement: How blocks are held, one at a time in the backward too.
    :param keep: Whether the activations of all blocks are kept, for which all have to be held already; else those of
        one at a time are, and each block but the last is run again in the backward. The gradients are the same, bit
        for bit, where no block is called twice.
    """
    layers = [layer for _, layer in anatomy.layers()]
    unreached = {layer.name: layer for layer in layers if layer.layout == "routed"}

    def reach(layer: Layer, gradient: Tensor) -> None:
        unreached.pop(layer.name, None)
        visit(layer, gradient)

    summed = _Summed([layer for block, layer in anatomy.layers() if block.calls != 1], reach)
    blocks, resident = anatomy.blocks, _Resident(placement)

    def checkpointed(_: int, block: Block) -> Callable[..., Any]:
        return _recomputed(block, resident, is_kept=keep or (block is blocks[-1] and block.calls in (1, None)))

    with (
        requiring_grad(model, layers),
        _visited(layers, summed.see),
        replaced_forwards(blocks, checkpointed),
        options_of(AdapterOptions, adapter).running(model),
        torch.enable_grad(),
        closing(resident),
    ):
        loss = loss_of(adapter, model, batch)
        resident.begin_backward()
        # By a thread for each device one would take a block back from the GPU while another visits its gradients.
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        summed.finish()
    for layer in unreached.values():
        visit(layer, torch.zeros_like(layer.weight))


def saved_bytes(model: nn.Module, adapter: Adapter, batch: Batch, anatomy: Anatomy) -> int:
    """Count at the most what a backward of the loss needs of its forward, by one in which nothing of it is kept.

    A tensor that several steps need is counted for each of them; a weight, which is there anyway, is not.
    """
    weights = {one.untyped_storage().data_ptr() for one in tensors_of(model)}
    found = 0

    def count(saved: Tensor) -> None:
        nonlocal found
        found += 0 if saved.untyped_storage().data_ptr() in weights else saved.nbytes

    with (
        requiring_grad(model, (layer for _, layer in anatomy.layers())),
        options_of(AdapterOptions, adapter).running(model),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing),
    ):
        loss_of(adapter, model, batch)
    return found


def kept_gradients(
    stream: Callable[[Callable[[Layer, Tensor], None]], None],
    layers: Sequence[Layer],
    needs: Sequence[type[Any]],
    folder: Path | None,
    batches: int,
) -> dict[str, Statistics]:
    """Take statistics of the loss' gradient at some layers, by the layer's name: a number a weight for each of them.

    A batch whose loss a layer has no part in counts with a gradient of zeros. An expert that no token reached has its
    statistics as though its gradient were one everywhere, and ``is_fed`` is False.

    :param stream: Visits all layers' gradients, batch by batch, as ``Replay.gradients`` does.
    :param folder: Where the numbers lie, in a file that is gone when they are; None for main memory.
    :param batches: How many of them it visits.
    :raises ModelError: Where a layer has no gradient, or one that is not finite.
    :raises RunError: Where the folder's disk has no room for them.
    """
    totals = {need: _zeros(layers, folder) for need in needs}
    kept = {layer.name: _Kept(layer, {need: totals[need][layer.name] for need in needs}) for layer in layers}

    def visit(layer: Layer, gradient: Tensor) -> None:
        if layer.name in kept:
            kept[layer.name].add(gradient)

    stream(visit)
    missing = [name for name, one in kept.items() if not one.seen]
    if missing:
        raise ModelError(
            f"the loss does not depend on {first_of(missing, 6)}, so there is no gradient. Keep them whole"
        )
    return {name: one.statistics(batches) for name, one in kept.items()}


class _Kept:
    """Holds the statistics of one layer's gradients while they come.

    :param totals: By the statistic's type, the zeros that it sums into.
    """

    def __init__(self, layer: Layer, totals: Mapping[type[Any], Float32[Tensor, "out in"]]) -> None:
        self.seen, self._is_fed = 0, layer.layout != "routed"
        self._layer, self._totals = layer, totals
        self._found = self._new()

    def _new(self) -> dict[type[Any], Any]:
        """Make statistics that have seen nothing yet, over totals of zeros."""
        found = {need: need(self._layer.shape[1]) for need in self._totals}
        for need, statistic in found.items():
            statistic.sum_into(self._totals[need])
        return found

    def add(self, gradient: Float[Tensor, "out in"]) -> None:
        """Add one batch's gradient."""
        if not is_finite(gradient):
            raise ModelError(f"{self._layer.name}: the gradient of the loss is NaN or infinite on the calibration data")
        self.seen += 1
        self._is_fed = self._is_fed or bool(gradient.any())
        for need, statistic in self._found.items():
            statistic.add_loss_gradient(gradient.to(self._totals[need].device))

    def statistics(self, batches: int) -> Statistics:
        """Give the statistics when so many batches were seen, with or without this layer."""
        if not self._is_fed:
            for total in self._totals.values():
                total.zero_()
            self._found = self._new()
            self.add(torch.ones(self._layer.shape))
            return Statistics(self._found, is_fed=False)
        for _ in range(batches - self.seen):
            self.add(torch.zeros(self._layer.shape))
        return Statistics(self._found)


def _zeros(layers: Sequence[Layer], folder: Path | None) -> dict[str, Float32[Tensor, "out in"]]:
    """Give a matrix of zeros of each layer's shape. All lie in one file of the folder, where there is one."""
    sizes = [layer.size for layer in layers]
    if folder is None:
        flat = torch.zeros(sum(sizes), dtype=torch.float32)
    else:
        flat = zeros_on_disk((sum(sizes),), torch.float32, folder)
    pieces = flat.split(sizes)
    return {layer.name: piece.view(layer.shape) for layer, piece in zip(layers, pieces, strict=True)}


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
            if gradient is not None:  # its block may have left the device by now
                self._visit(layer, gradient.to(layer.weight.device))


class _Resident:
    """Holds one block where it runs: in the backward, until the block before it is recomputed."""

    def __init__(self, placement: Placement) -> None:
        self.placement, self._held, self._is_backward = placement, ExitStack(), False

    def close(self) -> None:
        """Put back the block that is there."""
        self._held.close()

    def begin_backward(self) -> None:
        """Leave a block where it is behind its forward from here on: its backward follows."""
        self._is_backward = True

    def hold(self, block: Block) -> None:
        """Bring a block in the place of the one that is there."""
        self._held.close()
        self._held.enter_context(self.placement.held(tensors_of(block.module)))

    def release(self) -> None:
        """Put a block back behind its forward, unless its backward follows."""
        if not self._is_backward:
            self._held.close()


def _recomputed(block: Block, resident: _Resident, *, is_kept: bool) -> Callable[..., Any]:
    """Make a block's forward keep its inputs only. The last one's backward comes first, so it keeps its activations.

    :param is_kept: Whether it does, as all do where there is room.
    """
    original, home = block.module.forward, device_of(block.module)

    def held(*args: Any, **kwargs: Any) -> Any:
        resident.hold(block)
        output = resident.placement.call(home, original, args, kwargs)
        if not is_kept:
            resident.release()
        return output

    def forward(*args: Any, **kwargs: Any) -> Any:
        if is_kept:
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

    parameters = [parts[0].parameter for parts in of.values()]
    own = [parameter.grad for parameter in parameters]  # what the user's training left there would be added to
    handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for handle, parameter, gradient in zip(handles, parameters, own, strict=True):
            handle.remove()
            parameter.grad = gradient
