"""One pruned block as a refiner sees it: its inputs as the pruned blocks before it give them, and the dense outputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import proxy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.records import Target
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.nested import map_tensors, tensors_in
from ecoflap.core.forward.placement import Placement
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.walk import BlockCall
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.dense_block import DenseBlock
from ecoflap.core.refining.hidden_view import HiddenView
from ecoflap.core.refining.subblock_view import SubBlockView
from ecoflap.core.refining.subblocks import SubBlock, inputs_of, outputs_inside, subblocks_of


class BlockView(HiddenView):
    """One pruned block, for as long as :meth:`opened` lasts.

    :param replay: Of all batches, for this process alone.
    :param dense: What it was and gave before it was pruned.
    :param target: Which of what it gave it is held against.
    :param ranks: The processes that refine the block together.
    """

    def __init__(
        self,
        replay: Replay,
        index: int,
        layers: Sequence[Layer],
        masks: Mapping[str, Bool[Tensor, "out in"]],
        dense: DenseBlock,
        target: Target,
        ranks: Ranks = ALONE,
    ) -> None:
        outputs = {name: gave.outputs for name, gave in dense.gave.items()}
        super().__init__(replay, replay.blocks[index], layers, masks, outputs, target, ranks)
        self.dense_weights = dense.weights
        self._calls = [self._kept(replay.given_to(index, number)) for number in range(len(replay.batches))]
        self.subblocks = self._subblocks(dense)
        """Its sub-blocks, in the order they run; none where it is trained as a whole, or nobody asks for them."""

    @contextmanager
    def opened(self) -> Iterator["BlockView"]:
        """Hold the block's weights in float32 where it runs, and round them into place at the end."""
        placement = Placement(torch.float32, self._replay.placement.device)
        running = options_of(AdapterOptions, self._replay.adapter).running(self._replay.model)
        with self.weights.held(self.block.module, placement), without_fast_path(), running:
            yield self

    @contextmanager
    def objectives_inside(self, number: int) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Run the whole block on a batch, and give each sub-block's objective there by its name; differentiable.

        Other than that of :attr:`subblocks`, they depend on what runs before a sub-block in the block.
        """
        asked = [SubBlock(one.block, one.layers) for one in self.subblocks]
        calls = self._calls[number]
        with outputs_inside(self.block, asked, torch.clone) as seen:
            self.outputs(number)
        found = {}
        for one in self.subblocks:
            given = [(call, hidden) for call, each in zip(calls, seen, strict=True) for hidden in each[one.name]]
            found[one.name] = one.error_of(number, [call for call, _ in given], [hidden for _, hidden in given])
        yield found

    def _kept(self, calls: Sequence[BlockCall]) -> list[BlockCall]:
        """Put what is made anew for a block, as embeddings are for the first, where the record has the rest."""
        kept = self._replay.kept
        return [replace(call, args=kept(call.args), kwargs=kept(dict(call.kwargs))) for call in calls]

    def _subblocks(self, dense: DenseBlock) -> tuple[SubBlockView, ...]:
        """Give views of the sub-blocks, where each runs in every batch and its tokens are known."""
        views = []
        for one in subblocks_of(self.block, self.layers):
            found = {name: gave.inside for name, gave in dense.gave.items()}
            if not all(inside and all(one.block.name in each for each in inside) for inside in found.values()):
                return ()
            targets = {name: [each[one.block.name] for each in inside] for name, inside in found.items()}
            # A view that held this one would keep what it holds in memory until Python looks for circles.
            calls_in = partial(BlockView._calls_inside, proxy(self), one.block.module)
            view = SubBlockView(self._replay, one, self.masks, targets, self.target, calls_in, self.ranks)
            view.dense_weights = {name: self.dense_weights[name] for name in view.masks if name in self.dense_weights}
            views.append(view)
        return tuple(views) if all(view.is_of_tokens() for view in views) else ()

    @torch.no_grad()
    def _calls_inside(self, module: nn.Module, number: int) -> list[BlockCall]:
        """Run the block on a batch, and give the calls of a module inside of it, kept where the record is."""
        with self._running(number):
            return [one for call in self._calls[number] for one in self._seen_inside(module, call)]

    def _seen_inside(self, module: nn.Module, call: BlockCall) -> list[BlockCall]:
        given = self._given(call)
        recorded = list(tensors_in([call.args, dict(call.kwargs)]))
        home, seen = recorded[0].device, list[BlockCall]()
        held = {id(tensor): one for tensor, one in zip(tensors_in([*given]), recorded, strict=True)}

        def kept(tensor: Tensor) -> Tensor:
            """Copy what the block has made, and may write into; what it was given is held as recorded."""
            return held[id(tensor)] if id(tensor) in held else self._replay.kept(tensor.to(home, copy=True))

        def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(BlockCall(call.number, map_tensors(args, kept), map_tensors(kwargs, kept), None))

        with inputs_of(module, see):
            self._output(*given)
        return seen
