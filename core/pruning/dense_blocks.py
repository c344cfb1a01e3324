"""Records what each block was and returned before it is pruned, as far as its refiners look at that."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoflap.core.contracts.records import Target
from ecoflap.core.forward.placement import device_of, restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.refining.dense_block import DenseBlock, DenseOutputs, targets_of
from ecoflap.core.refining.subblocks import Hidden, Inside, by_batch, hidden_of, outputs_inside, subblocks_of


@dataclass(frozen=True)
class DenseBlocks:
    """Looks at the blocks of a model one by one, each before it is pruned.

    :param replay: Of the model with the pruned blocks before; it gives what a block returns on its own inputs.
    :param dense: Of the same model, in which each block is recorded while it is dense; None where nobody asks for that.
    :param weights: The weights that layers had before the first round, by name; empty where the model is dense.
    """

    replay: Replay
    dense: Replay | None
    weights: Mapping[str, Tensor]

    def advance(self, index: int, layers: Sequence[Layer], refiners: Sequence[PartSpec]) -> list[Inside]:
        """Record what a block of the dense model returns, and give what its sub-blocks return, call by call.

        :param layers: Those of the block that are to be pruned; none where it is not, or has been.
        :param refiners: Those of the block; sub-blocks are looked at where one of these asks for it.
        """
        if self.dense is None:
            return []
        with self._as_dense(index), self._seen_inside(index, layers, refiners, "dense") as inside:
            self.dense.advance(index)
        return inside

    def block(
        self, index: int, layers: Sequence[Layer], refiners: Sequence[PartSpec], inside: Sequence[Inside]
    ) -> DenseBlock:
        """Give what a block that is to be pruned is and returns, for each target that a refiner asks for.

        :param inside: What its sub-blocks returned in the dense model, as :meth:`advance` gave it.
        """
        block, numbers = self.replay.blocks[index], self.replay.own
        wanted = targets_of(refiner.options for refiner in refiners)
        found: dict[Target, DenseOutputs] = {}
        if "own" in wanted:
            with self._as_dense(index), self._seen_inside(index, layers, refiners, "own") as seen:
                calls = (self.replay.calls_of(index, number) for number in numbers)
                hidden = [self.replay.kept([hidden_of(block.name, call.output) for call in one]) for one in calls]
            found["own"] = self._of_all(block, hidden, seen)
        if "dense" in wanted:
            assert self.dense is not None  # it is made where any refiner asks for it
            outputs = map(self.dense.recorded, numbers)
            hidden = [[hidden_of(block.name, output) for output in batch] for batch in outputs]
            found["dense"] = self._of_all(block, hidden, inside)
        return DenseBlock(found, self._weights_for(refiners, index, layers))

    @contextmanager
    def _as_dense(self, index: int) -> Iterator[None]:
        """Give a block the weights that it had before the first round, for a while."""
        inside = self.replay.anatomy.layers_of[self.replay.blocks[index].name]
        layers = [layer for layer in inside if layer.name in self.weights]
        with restored(layers):
            for layer in layers:
                layer.weight.data.copy_(self.weights[layer.name])
            yield

    @contextmanager
    def _seen_inside(
        self, index: int, layers: Sequence[Layer], refiners: Sequence[PartSpec], target: Target
    ) -> Iterator[list[Inside]]:
        """Collect what the sub-blocks of a block return, call by call, where a refiner with this target asks."""
        options = [one.options for one in refiners]
        is_asked = any(target in targets_of([one]) for one in options if one.inside or one.each == "subblock")
        if not is_asked or not layers:
            yield []
            return
        block = self.replay.blocks[index]
        home = device_of(block.module)
        with outputs_inside(block, subblocks_of(block, layers), lambda hidden: self._put_away(hidden, home)) as seen:
            yield seen

    def _put_away(self, hidden: Tensor, home: torch.device) -> Tensor:
        """Copy a hidden state that the model may still write into to where the record is kept."""
        kept: Tensor = self.replay.kept(hidden.detach().to(home, copy=True))
        return kept

    def _weights_for(self, refiners: Sequence[PartSpec], index: int, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Copy a block's matrices as they were before the first round, where a refiner looks at them."""
        if not any(refiner.options.dense_weights for refiner in refiners):
            return {}
        with self._as_dense(index):
            return {layer.name: layer.weight.detach().clone() for layer in layers}

    def _of_all(self, block: Block, hidden: Sequence[Hidden], seen: Sequence[Inside]) -> DenseOutputs:
        """Give the hidden states of all batches, kept as the record is, from those of this process' own."""
        inside = by_batch(seen, block.calls or 1) if seen else [{} for _ in hidden]
        mine = dict(zip(self.replay.own, zip(hidden, inside, strict=True), strict=True))
        found = self.replay.ranks.gather_each(mine, len(self.replay.batches), self.replay.kept)
        return DenseOutputs([outputs for outputs, _ in found], [each for _, each in found])
