"""The processor that an adapter reads without weights makes the batches that the one of the loaded model makes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from table import GENERIC_ROWS, ROWS
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.model.source import open_source

FAMILIES = {**ROWS, **{name: GENERIC_ROWS[name] for name in ("llava", "qwen2_vl", "gpt2", "bart", "bert")
                       if name in GENERIC_ROWS}}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_batch_is_the_same_with_weights_and_without(name: str, tmp_path: Path):
    row = FAMILIES[name]
    if not row.is_whole_on_disk:
        pytest.skip("what is saved of it is read into a model at hand")
    row.adapter().save(row.build(), tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    planning, running = row.adapter(), row.adapter()
    planning.processor = running.processor = None
    loaded, weightless = running.load(source, None, "cpu"), planning.load(source, None, "meta")
    read = options_of(AdapterOptions, planning).read_processor
    assert read is not None
    planning.processor = read(source, weightless)
    if name.startswith("open_clip"):  # whose own tokenizer is named there, for which a pico model is too small
        for model in (loaded, weightless):
            getattr(model, "text", model).token_embedding = nn.Embedding(49408, 1)
    samples = row.samples(2)
    check_same(planning.collate(weightless, samples), running.collate(loaded, samples))


def check_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name


PADDING = sorted({"llava", "qwen2_vl", "paligemma", "florence2", "t5gemma2", "idefics3"} & GENERIC_ROWS.keys())


@pytest.mark.parametrize("name", PADDING)
def test_a_tokenizer_is_saved_as_it_came(name: str, tmp_path: Path):
    """A fast one keeps how it padded last, and would pad every text of a reader's to the length of our batches."""
    row = GENERIC_ROWS[name]
    model, adapter = row.build(), row.adapter()
    adapter.save(model, tmp_path / "before")
    batch = adapter.collate(model, row.samples(2))
    assert any(isinstance(value, Tensor) for value in batch.values())
    adapter.save(model, tmp_path / "after")
    before, after = (tmp_path / when / "tokenizer.json" for when in ("before", "after"))
    assert after.read_text("utf-8") == before.read_text("utf-8")
