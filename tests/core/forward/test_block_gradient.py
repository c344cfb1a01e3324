"""Which axes of what a block returns are samples and positions, whatever their order and however many there are."""

import pytest
import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.block_gradient import by_sample
from ecoflap.core.model.anatomy import Block, Layer

SIZES = [(2, 3), (3, 3), (1, 4), (4, 1)]
BLOCK = Block("block", nn.Linear(5, 5), "language")


def layers(*layouts):
    return [Layer(f"block.{number}", BLOCK.module, "weight", "", layout) for number, layout in enumerate(layouts)]


def said(batch, tokens):
    """States that tell their sample and their position."""
    number = 10.0 * torch.arange(batch)[:, None] + torch.arange(tokens)
    return number[..., None].expand(-1, -1, 5).contiguous()


@pytest.mark.parametrize(("batch", "tokens"), SIZES)
def test_samples_come_first_in_whichever_order_a_block_returns_them(batch, tokens):
    states, real = said(batch, tokens), torch.ones(batch, tokens, dtype=torch.bool)
    turned = states.transpose(0, 1).contiguous()
    token_first, batch_first = layers("token batch", "token batch"), layers("batch token", "batch token")
    assert by_sample(BLOCK, batch_first, states, real).equal(states)
    assert by_sample(BLOCK, token_first, turned, real).equal(states)
    assert by_sample(BLOCK, batch_first, states.flatten(0, 1), real).equal(states)
    assert by_sample(BLOCK, token_first, turned.flatten(0, 1), real).equal(states)


@pytest.mark.parametrize(("batch", "tokens"), SIZES)
def test_attention_that_turns_its_own_inputs_leaves_its_block_as_it_is(batch, tokens):
    states, real = said(batch, tokens), torch.ones(batch, tokens, dtype=torch.bool)
    assert by_sample(BLOCK, layers("token batch", "batch token"), states, real).equal(states)


def test_several_streams_are_behind_samples_and_positions():
    streams = torch.stack([said(2, 3), 100 + said(2, 3)])
    found = by_sample(BLOCK, layers("batch token"), streams, torch.ones(2, 3, dtype=torch.bool))
    assert found.equal(streams.permute(1, 2, 0, 3))


def test_a_shape_of_other_tokens_is_refused():
    with pytest.raises(ModelError, match=r"block: its output \(2, 4, 5\) is not of the \(2, 3\) tokens"):
        by_sample(BLOCK, layers("batch token"), said(2, 4), torch.ones(2, 3, dtype=torch.bool))
