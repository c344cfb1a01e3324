"""A pico LLaMA in which one block is pruned by hand, and a deep copy of it that stayed dense."""

import copy

import pytest
import torch

from ecoflap import Anatomy, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.refining.block_view import BlockView
from ecoflap.core.refining.dense_block import DenseBlock, DenseOutputs
from ecoflap.core.refining.subblocks import by_batch, hidden_of, outputs_inside, subblocks_of

ADAPTER = LlamaAdapter()


def batches(count=3):
    """Batches of two texts, the second of them padded."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        tokens = torch.randint(3, 60, (2, 10), generator=generator)
        mask = torch.ones(2, 10, dtype=torch.int64)
        mask[1, 7:] = 0
        made.append({"input_ids": tokens, "attention_mask": mask})
    return made


class Case:
    """Block 1 of 3 is pruned and opened; ``dense`` is another model, which nothing of it touches."""

    def __init__(self, model, target="dense", keep_in=None):
        self.model, self.dense = model, copy.deepcopy(model)
        self.batches, self.target = batches(), target
        self.anatomy = Anatomy.of(ADAPTER.towers(model), ADAPTER.layers)
        self.replay = Replay(model, ADAPTER, self.batches, anatomy=self.anatomy, keep_in=keep_in)
        streams = Replay(model, ADAPTER, self.batches, anatomy=self.anatomy)
        numbers = range(len(self.batches))
        self.masks = {}
        self.weights = {layer.name: layer.weight.detach().clone() for _, layer in self.anatomy.layers()}
        for index in (0, 1):
            block = self.anatomy.blocks[index]
            found = subblocks_of(block, self.anatomy.layers_of[block.name])
            with outputs_inside(block, found, torch.clone) as seen:
                streams.advance(index)
            self.inside = by_batch(seen, 1)
            self.targets = [[hidden_of(block.name, output) for output in streams.recorded(n)] for n in numbers]
            if index and target == "own":
                calls = [self.replay.calls_of(index, n) for n in numbers]
                self.targets = [[hidden_of(block.name, call.output).clone() for call in batch] for batch in calls]
            self.prune(index)
            if index == 0:
                self.replay.advance(0)
        self.layers = self.anatomy.layers_of[self.anatomy.blocks[1].name]
        self.view = self.seen(self.inside)

    def seen(self, inside):
        """A view of the block, in whose sub-blocks the dense model gave this."""
        dense = DenseBlock({self.target: DenseOutputs(self.targets, inside)}, self.weights)
        return BlockView(self.replay, 1, self.layers, self.masks, dense, self.target)

    def prune(self, index):
        for layer in self.anatomy.layers_of[self.anatomy.blocks[index].name]:
            weight = layer.weight.data
            mask = weight.abs() > weight.abs().float().median()
            weight.mul_(mask)
            self.masks[layer.name] = mask


@pytest.fixture
def case(pico_llama):
    """``case(target="dense", dtype=torch.float32, keep_in=None)``."""

    def make(target="dense", dtype=torch.float32, keep_in=None):
        return Case(pico_llama(dtype=dtype), target, keep_in)

    return make
