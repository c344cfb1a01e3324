"""One pruned block as a refiner sees it: its inputs as the pruned blocks before it give them, and the dense outputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.options import AdapterOptions
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.block_gradient import by_sample
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.noise import seed_for, seeded
from ecoflap.core.forward.placement import Placement, device_of, map_tensors
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.walk import BlockCall, tensors_in
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.views import RefinedView, Split, computing_in

Hidden = list[Float[Tensor, "..."]]
"""The hidden states that a block returned on one batch, call by call."""

_LEAST = 1e-4
"""Of the median squared length of a batch's tokens, the least that a token's error is held against."""


class BlockView(RefinedView):
    """One pruned block, for as long as :meth:`opened` lasts.

    :param replay: Of all batches, for this process alone.
    :param targets: By batch, what the dense block returned, call by call.
    :param ranks: The processes that refine the block together.
    """

    def __init__(
        self,
        replay: Replay,
        index: int,
        layers: Sequence[Layer],
        masks: Mapping[str, Bool[Tensor, "out in"]],
        targets: Sequence[Hidden],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(layers, masks, Split.of(len(replay.batches)), ranks)
        self.block: Block = replay.blocks[index]
        self.name = self.block.name
        self._replay, self._targets = replay, targets
        self._calls = [
            [replace(call, output=None) for call in replay.calls_of(index, n)] for n in range(len(replay.batches))
        ]

    @contextmanager
    def opened(self) -> Iterator["BlockView"]:
        """Hold the block's weights in float32 where it runs, and round them into place at the end."""
        placement = Placement(torch.float32, self._replay.placement.device)
        running = options_of(AdapterOptions, self._replay.adapter).running(self._replay.model)
        with self.weights.held(self.block.module, placement), without_fast_path(), running:
            yield self

    def inputs(self, number: int) -> Hidden:
        """Give the hidden states of a batch that the block is given, as the pruned blocks before it leave them."""
        device = device_of(self.block.module)
        given = (next(tensors_in([*call.args, *call.kwargs.values()])) for call in self._calls[number])
        return [hidden.to(device, torch.float32) for hidden in given]

    def outputs(self, number: int) -> Hidden:
        """Run the block on a batch as the pruned blocks before it leave it; differentiable, in float32."""
        device = device_of(self.block.module)
        with seeded(seed_for(self._replay.seed, number)), computing_in(self.dtype, device.type):
            return [hidden_of(self.block, self._call(call, device)) for call in self._calls[number]]

    def targets(self, number: int) -> Hidden:
        """Give what the dense block returned on a batch, in float32."""
        device = device_of(self.block.module)
        return [target.to(device, torch.float32) for target in self._targets[number]]

    @contextmanager
    def objective(self, number: int) -> Iterator[Float[Tensor, ""]]:
        """Give the mean of ‖f(x) − t‖² / ‖t‖² over the real tokens x of a batch.

        What reads a hidden state normalises it first, so that an error matters as a share of its length. Of a language
        model's tokens the first has a hundred times the length of others, and their errors would be lost in its square.
        """
        calls = zip(self._calls[number], self.outputs(number), self.targets(number), strict=True)
        shares = torch.cat([self._shares(number, *call).flatten() for call in calls])
        yield shares.sum() / max(len(shares), 1)

    def _shares(
        self, number: int, call: BlockCall, output: Float[Tensor, "..."], target: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """Compute the squared error of each real token as a share of what the dense block gave there."""
        errors, lengths = (self._real(number, call, one).square().sum(-1) for one in (output - target, target))
        # Where the dense block gives nothing a share would be without bounds. A mean would be the longest token's own.
        return errors / lengths.clamp_min(_LEAST * float(lengths.median()) or 1.0) if lengths.numel() else errors

    def _real(self, number: int, call: BlockCall, hidden: Tensor) -> Tensor:
        if self.layers[0].layout == "selected":
            return hidden
        real = self._replay.tokens(number, self.block.tower, call.number) > 0
        return by_sample(self.block, self.layers, hidden, real)[real.to(hidden.device)]

    def _call(self, call: BlockCall, device: torch.device) -> Any:
        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32 if tensor.is_floating_point() else None)

        return self.block.module(*map_tensors(call.args, there), **map_tensors(dict(call.kwargs), there))


def hidden_of(block: Block, output: Any) -> Float[Tensor, "..."]:
    """Give the hidden states among what a block returned: its first tensor."""
    hidden = next(tensors_in(output), None)
    if hidden is None:
        raise ModelError(f"{block.name}: it returned no tensor, so there is nothing to hold against the dense block")
    return hidden
