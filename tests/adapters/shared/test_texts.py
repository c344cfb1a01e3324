"""Texts as token ids, by a tokenizer that is as it was afterwards."""

from typing import Any

import pytest
from pico_clip import LENGTH, WORDS, image_processor, processor

from ecoflap.adapters.shared.texts import left_as_it_was, texts_of
from ecoflap.core.contracts.records import Sample

LONG = Sample(text=" ".join(WORDS[10:40]))


@pytest.mark.parametrize("own", [None, 5])
def test_a_tokenizer_is_not_changed_by_cutting_texts(own: int | None):
    """Else the length that one model's texts were cut to would be written beside it."""
    made: Any = processor()
    backend = made.tokenizer.backend_tokenizer
    if own is not None:
        backend.enable_truncation(own)
    before = backend.to_str()
    assert texts_of(made, [LONG], 7)["input_ids"].shape == (1, 7)
    assert texts_of(made, [LONG])["input_ids"].shape == (1, LENGTH)
    assert backend.to_str() == before


def test_nor_by_padding_them():
    """Else every text that a reader tokenizes would be as long as those that calibrated."""
    tokenizer: Any = processor().tokenizer
    backend = tokenizer.backend_tokenizer
    for own in (None, {"length": 5, "direction": "left"}):
        if own is not None:
            backend.enable_padding(**own)
        before = backend.to_str()
        with left_as_it_was(tokenizer):
            made = tokenizer([LONG.text, WORDS[10]], padding=True)
            assert len(made.input_ids[0]) == len(made.input_ids[1]) > 5
            assert backend.to_str() != before
        assert backend.to_str() == before


def test_without_tokenizer_or_text_there_is_nothing():
    assert texts_of(image_processor(), [LONG]) == texts_of(processor(), [Sample()]) == {}
