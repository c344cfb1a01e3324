"""The walk of scorers that look at one block after the other."""

import pytest
import torch

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block


@pytest.fixture
def replay(pico_llama):
    ids = torch.arange(3, 19).reshape(1, 16)
    return Replay(pico_llama(layers=3), LlamaAdapter(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])


def test_each_block_can_be_run_when_its_turn_comes(replay):
    layers = [layer for _, layer in replay.anatomy.layers()]
    seen = {}
    for index, block, own in block_by_block(replay, layers):
        assert replay.loss(index).isfinite().all()
        seen[block.name] = tuple(own)
    assert seen == dict(replay.anatomy.layers_of)


def test_only_blocks_with_wanted_layers_and_nothing_behind_the_last(replay, monkeypatch):
    advanced = []
    move_on = replay.advance
    monkeypatch.setattr(replay, "advance", lambda index: (advanced.append(index), move_on(index)))
    wanted = replay.anatomy.layers_of[replay.blocks[1].name][2:4]
    found = [(index, block.name, own) for index, block, own in block_by_block(replay, wanted)]
    assert found == [(1, replay.blocks[1].name, [*wanted])]
    assert advanced == [0]
