"""A tokenizer of another model makes tokens that a model has no embedding for: it is told before anything is run."""

import pytest
from table import ROWS
from torch import nn

import ecoflap
from ecoflap.core.contracts.abilities import Compares, Generates, Generation, offers
from ecoflap.core.errors import DataError

EMBEDDINGS = {
    "clip": "text_model.embeddings.token_embedding",
    "siglip": "text_model.embeddings.token_embedding",
    "open_clip": "token_embedding",
    "open_clip_siglip": "text.token_embedding",
    "blip2_opt": "language_model.model.decoder.embed_tokens",
    "blip2_llama": "language_model.model.embed_tokens",
    "blip2_t5": "language_model.shared",
    "blip2_retrieval": "embeddings.word_embeddings",
    "llava": "model.language_model.embed_tokens",
    "qwen2_vl": "model.language_model.embed_tokens",
}
FEW = 3


@pytest.fixture(params=sorted(EMBEDDINGS.keys() & ROWS.keys()))
def case(request: pytest.FixtureRequest):
    """An adapter with the tokenizer of its own model, and one that knows fewer tokens."""
    row = ROWS[request.param]
    model, adapter = row.build(), row.adapter()
    embedding = model.get_submodule(EMBEDDINGS[request.param])
    embedding.weight = nn.Parameter(embedding.weight.data[:FEW].clone())
    embedding.num_embeddings = FEW
    return model, adapter, row.samples(2)


SAID = (
    r"the tokenizer(, which knows \d+,)? makes token \d+ of a text, and this \w+ has embeddings for 3, from 0 on: it "
)


def test_it_is_told_with_the_token_both_sizes_and_the_way_out(case):
    model, adapter, samples = case
    with pytest.raises(DataError, match=SAID + r"is another model's\. (Put|Take) the"):
        adapter.collate(model, samples)


def test_it_is_told_where_a_model_is_asked(case):
    model, adapter, samples = case
    if offers(adapter, Compares):
        with pytest.raises(DataError, match=SAID):
            adapter.embed_texts(model, [sample.text for sample in samples])
    if offers(adapter, Generates):
        asked = [ecoflap.Sample(image=sample.image, question=sample.text or sample.question) for sample in samples]
        with pytest.raises(DataError, match=SAID):
            adapter.generate(model, asked, Generation(max_new_tokens=1))
    assert offers(adapter, Compares) or offers(adapter, Generates)
