"""Which inputs count: each layout against rows picked by hand."""

import pytest
import torch
from torch import nn

from ecoflap import Layer
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.counted_tokens import CountedTokens
from ecoflap.core.model.anatomy import Block, Layout

BATCH, TOKENS, WIDTH = 2, 3, 4
MODULE = nn.Linear(WIDTH, WIDTH)
REAL = torch.tensor([[1, 1, 0], [1, 0, 0]])


def counted(layout: Layout, inputs: torch.Tensor, weights: torch.Tensor = REAL) -> torch.Tensor:
    tokens = CountedTokens(Block("blocks.0", MODULE, "language"))
    tokens.begin(lambda tower, call: weights)
    return tokens.of(Layer("blocks.0.weight", MODULE, layout=layout), inputs, 0, None)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(1))


def test_padding_is_left_out_in_either_layout():
    inputs = drawn(BATCH, TOKENS)
    real = torch.stack([inputs[0, 0], inputs[0, 1], inputs[1, 0]])
    assert counted("batch token", inputs).equal(real)
    assert counted("batch token", inputs.reshape(BATCH * TOKENS, WIDTH)).equal(real)
    assert counted("token batch", inputs.transpose(0, 1)).equal(torch.stack([inputs[0, 0], inputs[1, 0], inputs[0, 1]]))
    assert counted("selected", inputs).equal(inputs.reshape(-1, WIDTH))


def test_a_position_that_counts_w_adds_w_times_its_square():
    inputs = drawn(BATCH, TOKENS)
    weights = torch.tensor([[0.25, 2.0, 0.0], [1.0, 0.0, 0.5]])
    squares = (inputs.double().square() * weights.double()[..., None]).sum((0, 1))
    assert torch.allclose(counted("batch token", inputs, weights).double().square().sum(0), squares)


@pytest.mark.parametrize(
    ("layout", "shape", "seen"), [("token batch", (2, 3), "batch token"), ("batch token", (3, 2), "token batch")]
)
def test_the_other_layout_is_refused_where_padding_would_be_taken_for_tokens(layout, shape, seen):
    said = rf"its input .* is laid out as '{seen}', and by its adapter's layout, '{layout}', padding would be taken"
    with pytest.raises(ModelError, match=said):
        counted(layout, drawn(*shape))


def test_the_other_layout_passes_where_nothing_hangs_on_it():
    """As of a single sample, of positions that all count, and of as many samples as positions."""
    assert len(counted("token batch", drawn(1, 3), torch.tensor([[1, 1, 0]]))) == 2
    assert len(counted("token batch", drawn(2, 3), torch.ones(2, 3, dtype=torch.int64))) == 6
    assert len(counted("token batch", drawn(2, 2), torch.tensor([[1, 1], [1, 0]]))) == 3


def test_another_number_of_tokens_is_refused_with_both():
    with pytest.raises(ModelError, match=r"holds 8 tokens, but the tower it reads, 'language', has 6\."):
        counted("batch token", drawn(2, 4))
