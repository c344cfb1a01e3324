"""Batches of texts: tokens that a model has no embedding for are refused, with the way out."""

import pytest
import torch
from table import GENERIC_ROWS, ROWS

import ecoflap
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
