"""What an adapter says of a batch is held to what its contract has, in a sentence of the adapter's."""

import re

import pytest
import torch
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.adapter_answers import loaded_by, loss_of, max_length_of, tokens_of
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.model.anatomy import Source


class Says(LlamaAdapter):
    """Says the same of whatever it is asked."""

    def __init__(self, answer):
        super().__init__()
        self.loss = self.tokens = self.max_length = lambda *given: answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "gave None; a tensor of one floating-point number is wanted"),
        (0.5, r"gave 0\.5; a tensor of one"),
        ((torch.tensor(0.5),), r"gave \(tensor\(0\.5000\),\); a tensor of one"),
        (torch.ones(1), r"gave a tensor of \(1,\) in torch\.float32; one"),
        (torch.tensor(3), r"gave a tensor of \(\) in torch\.int64; one"),
    ],
)
def test_a_loss_that_is_no_number_is_refused(answer, said):
    with pytest.raises(PartError, match=rf"^the adapter Says, computing the loss, {said}"):
        loss_of(Says(answer), nn.Identity(), {})


def test_a_loss_without_a_gradient_is_refused_where_one_is_wanted():
    with torch.no_grad():
        assert loss_of(Says(torch.tensor(0.5)), nn.Identity(), {}) == 0.5
    with pytest.raises(PartError, match=r"that no gradient flows from: it was detached, or computed under no_grad\(\)"):
        loss_of(Says(torch.tensor(0.5)), nn.Identity(), {})
    assert loss_of(Says(torch.tensor(0.5, requires_grad=True)), nn.Identity(), {}) == 0.5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "gave None; a number for each position"),
        (torch.ones(4, dtype=torch.int8), r"gave a tensor of \(4,\) in torch\.int8; a number"),
        (torch.ones(2, 4), r"gave a tensor of \(2, 4\) in torch\.float32; a number"),
        (torch.tensor([[0, 7]]), "gave numbers from 0 to 7; a number"),
        (torch.tensor([[-1, 1]]), "gave numbers from -1 to 1; a number"),
    ],
)
def test_tokens_that_are_no_kinds_of_positions_are_refused(answer, said):
    with pytest.raises(PartError, match=rf"^the adapter Says, asked for the tokens of its tower 'language', {said}"):
        tokens_of(Says(answer), nn.Identity(), {}, "language")


@pytest.mark.parametrize("answer", ["48", 1.5, 0, -1, True])
def test_a_longest_text_that_is_no_number_of_tokens_is_refused(answer):
    said = f"asked for its longest text, gave {answer!r}; a number of tokens is wanted, or None where there is no limit"
    with pytest.raises(PartError, match=f"^the adapter Says, {re.escape(said)}"):
        max_length_of(Says(answer), nn.Identity())


def test_a_longest_text_may_have_no_limit():
    assert [max_length_of(Says(answer), nn.Identity()) for answer in (None, 1, 48)] == [None, 1, 48]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_any_whole_numbers_will_do(dtype):
    answer = torch.tensor([[1, 0]]).to(dtype)
    assert tokens_of(Says(answer), nn.Identity(), {}, "language") is answer


@pytest.mark.parametrize("given", [None, "the model"])
def test_an_adapter_that_loads_no_model_is_named(given):
    class Loads(LlamaAdapter):
        def load(self, source, dtype, device):
            return given

    with pytest.raises(PartError, match=r"the adapter Loads, loading mine, gave .*; its load returns the model"):
        loaded_by(Loads(), Source("mine"), None, "cpu")
