"""Batches of texts: tokens that a model has no embedding for, and texts longer than its positions, are refused."""

from dataclasses import replace

import pytest
import torch
from table import GENERIC_ROWS, ROWS
from torch import nn

import ecoflap
from ecoflap.adapters.shared.text_batches import within_vocabulary
from ecoflap.adapters.shared.texts import check_lengths
from ecoflap.core.errors import DataError

NAMES = [name for name in ("llama", "t5", "gemma", "bart", "bert") if name in {**ROWS, **GENERIC_ROWS}]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_of_another_model_is_told_by_its_tokens(name: str):
    row = {**ROWS, **GENERIC_ROWS}[name]
    model, adapter = row.build(), row.adapter()
    size = model.get_input_embeddings().num_embeddings
    adapter.collate(model, [ecoflap.Sample(tokens=torch.tensor([5, size - 1, 6, 7]))])
    with pytest.raises(DataError, match=rf"makes token {size} of a text, and this {type(model).__name__} has embed"):
        adapter.collate(model, [ecoflap.Sample(tokens=torch.tensor([5, size, 6, 7]))])


LONGEST = 64
"""Positions that these pico models have."""
ROWS_OF_POSITIONS = [name for name in ("bart", "blip2_opt", "marian") if name in {**ROWS, **GENERIC_ROWS}]


def asked(name: str, words: int) -> ecoflap.Sample:
    """A sample of one of these models whose longer text has so many tokens; the other one is a word."""
    one = {**ROWS, **GENERIC_ROWS}[name].samples(1)[0]
    if name == "blip2_opt":  # four are the image's, one begins, and one ends the text
        return replace(one, question=None, text=" ".join(["w1"] * (words - 6)), answers=())
    return replace(one, question=" ".join(["w1"] * (words - 1)), answers=("w2",))


@pytest.mark.parametrize("name", ROWS_OF_POSITIONS)
def test_a_text_longer_than_the_models_positions_is_named(name: str):
    row = {**ROWS, **GENERIC_ROWS}[name]
    model, adapter = row.build(), row.adapter()
    short, fits, longer = asked(name, 20), asked(name, LONGEST), asked(name, LONGEST + 1)
    assert torch.isfinite(adapter.loss(model, adapter.collate(model, [short, fits])))
    with pytest.raises(DataError, match=r"^text 1 of a batch is of 65 tokens, and this model has positions for 64: sh"):
        adapter.loss(model, adapter.collate(model, [short, longer]))


@pytest.mark.parametrize("name", [name for name in ("bart", "marian") if name in ROWS_OF_POSITIONS])
def test_an_answer_longer_than_the_models_positions_is_named(name: str):
    row = {**ROWS, **GENERIC_ROWS}[name]
    model, adapter = row.build(), row.adapter()
    samples = [replace(asked(name, 9), answers=(" ".join(["w1"] * (words - 1)),)) for words in (64, 65)]
    assert torch.isfinite(adapter.loss(model, adapter.collate(model, samples[:1])))
    with pytest.raises(DataError, match=r"^text 1 of a batch is of 65 tokens, and this model has positions for 64: sh"):
        adapter.loss(model, adapter.collate(model, samples))


@pytest.mark.parametrize(("longest", "told"), [(None, None), (5, None), (4, 2), (3, 1)])
def test_lengths_are_held_against_positions(longest: int | None, told: int | None):
    if told is None:
        check_lengths([3, 4, 5], longest)
        return
    with pytest.raises(DataError, match=rf"text {told} of a batch is of {[3, 4, 5][told]} tokens, .* for {longest}:"):
        check_lengths([3, 4, 5], longest)


def test_a_label_that_is_left_out_is_no_word():
    model = nn.Module()
    model.get_input_embeddings = lambda: nn.Embedding(8, 2)
    batch = {"input_ids": torch.tensor([[3, 7]])}
    assert within_vocabulary(model, batch) is batch
    with pytest.raises(DataError, match=r"a text holds the token -100, and tokens count from 0 on"):
        within_vocabulary(model, {"input_ids": torch.tensor([[3, -100]])})
