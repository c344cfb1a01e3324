"""What a decoder that says something of an image is begun with, against transformers' own ``generate``."""

from dataclasses import replace

import pytest
import torch
from pico_composites import images
from pico_seeing_pairs import FAMILIES, MBART, SWIN, adapter, build, processor
from pico_words import BEGIN, END, captions
from table import row_of
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.generic.image_to_text import ImageToTextAdapter
from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.errors import DataError
from ecoflap.core.model.source import in_memory, open_source

KIND = "ViTImageProcessor"


def asked(*questions: str) -> list[ecoflap.Sample]:
    return [
        replace(sample, question=question) for sample, question in zip(captions(len(questions)), questions, strict=True)
    ]


def ids(text: str) -> list[int]:
    return processor(KIND).tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_text_begins_with_what_starts_the_decoder_and_ends_with_what_ends_it():
    model, (sample,) = FAMILIES["trocr"].build(), captions(1)
    batch = adapter(KIND).collate(model, [sample])
    assert batch["decoder_input_ids"].tolist() == [[BEGIN, *ids(sample.text)]]
    assert batch["labels"].tolist() == [[*ids(sample.text), END]]


@pytest.mark.parametrize(("family", "begins"), [("trocr", [BEGIN]), ("donut", [])])
def test_what_a_text_goes_on_from_is_given_and_not_said(family, begins):
    """Nothing is put before Donut's prompt."""
    model, given = row_of(family).build(), adapter(KIND)
    short, long = asked("w1", "w1 w2 w3")
    batch = given.collate(model, [short, long])
    for row, sample in enumerate((short, long)):
        begun, said = [*begins, *ids(sample.question)], [*ids(sample.text), END]
        real = int(batch["decoder_attention_mask"][row].sum())
        assert batch["decoder_input_ids"][row, :real].tolist() == [*begun, *said[:-1]]
        assert batch["labels"][row, :real].tolist() == [-100] * (len(begun) - 1) + said
        assert (batch["labels"][row, real:] == -100).all()
    said, head = (given.tokens(model, batch, name) for name in ("decoder", row_of(family).outside[-1]))
    assert torch.equal(said, batch["decoder_attention_mask"].to(torch.int8))
    assert torch.equal(head.bool(), batch["labels"] != -100)


def test_a_prompt_stands_where_a_sample_asks_nothing():
    model, prompted = row_of("donut").build(), ImageToTextAdapter(prompt="w7 w8")
    prompted.processor = processor(KIND)
    (own,) = asked("w1")
    given = prompted.collate(model, [replace(own, question=None), own])["decoder_input_ids"]
    assert given[0, :2].tolist() == ids("w7 w8")
    assert given[1, :1].tolist() == ids("w1")


@pytest.mark.parametrize("family", ["trocr", "donut", "vit_gpt2"])
def test_it_says_what_transformers_says(family):
    """Texts that go on from prompts of unequal lengths are the same as each alone."""
    model, given, samples = row_of(family).build(), adapter(KIND), asked("w1 w2", "", "w3 w4")
    said = given.generate(model, samples, Generation(max_new_tokens=5))
    for sample, one in zip(samples, said, strict=True):
        pixels = given.processor.image_processor(sample.image, return_tensors="pt")["pixel_values"]
        begins = [] if family == "donut" and sample.question else [BEGIN]
        begun = torch.tensor([[*begins, *ids(sample.question)]])
        own = model.generate(
            pixel_values=pixels, decoder_input_ids=begun, max_new_tokens=5, do_sample=False,
            **({} if begins else {"decoder_start_token_id": int(begun[0, 0])}),
        )  # fmt: skip
        assert list(one.tokens) == own[0, begun.shape[1] :].tolist()


def test_the_loss_of_what_is_said_is_that_of_all_its_tokens():
    """What goes before is no part of it: token by token."""
    model, given, samples = FAMILIES["vit_gpt2"].build(), adapter(KIND), asked("w1 w2", "w3")
    batch = given.collate(model, samples)
    losses = []
    for row, sample in enumerate(samples):
        begun, said = [BEGIN, *ids(sample.question)], [*ids(sample.text), END]
        for at, token in enumerate(said):
            ended = torch.tensor([[*begun, *said[:at]]])
            logits = model(pixel_values=batch["pixel_values"][row : row + 1], decoder_input_ids=ended).logits
            losses.append(-logits[0, -1].log_softmax(-1)[token])
    torch.testing.assert_close(given.loss(model, batch).float(), torch.stack(losses).mean())


def test_a_decoder_of_which_nothing_says_how_it_begins_is_refused():
    model, given = FAMILIES["vit_gpt2"].build(), adapter(KIND)
    for config in (model.config, model.generation_config, model.config.decoder):
        config.decoder_start_token_id = config.bos_token_id = None
    given.processor.tokenizer.bos_token = None
    with pytest.raises(DataError, match=r"which token the decoder .* begins with: set decoder_start_token_id"):
        given.collate(model, captions(1))


def test_a_processor_that_lies_in_two_halves_is_put_together(tmp_path):
    whole, model = processor(KIND), FAMILIES["vit_gpt2"].build()
    model.save_pretrained(tmp_path)
    for half in (whole.image_processor, whole.tokenizer):
        half.save_pretrained(tmp_path)
    read = ImageToTextAdapter()
    loaded = read.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    batch, expected = (one.collate(loaded, captions(2)) for one in (read, adapter(KIND)))
    for name, value in expected.items():  # pixels by Pillow or by torchvision
        torch.testing.assert_close(batch[name], value, rtol=0, atol=1e-6)
    (tmp_path / "preprocessor_config.json").unlink()
    blind = ImageToTextAdapter()
    loaded = blind.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    with pytest.raises(DataError, match="needs an image processor"):
        blind.collate(loaded, captions(1))


def test_no_other_adapter_claims_it():
    registry = ecoflap.load_registry()
    source = in_memory(row_of("donut").build())
    claiming = [name for name in registry.names("adapter") if registry.find("adapter", name)().matches(source)]
    assert claiming == ["image_to_text"]


def test_a_text_longer_than_the_decoder_has_positions_is_named():
    model, given = FAMILIES["trocr"].build(), adapter(KIND)
    (sample,) = captions(1)
    batch = given.collate(model, [replace(sample, text="w1 " * 100)])
    with pytest.raises(DataError, match="is of 101 tokens, and this model has positions for 64"):
        given.loss(model, batch)


def test_a_batch_of_nothing_is_refused_before_anything_is_said():
    model, given = FAMILIES["trocr"].build(), adapter(KIND)
    for call in (lambda: given.collate(model, []), lambda: given.generate(model, [], Generation())):
        with pytest.raises(DataError, match="a batch needs at least one sample"):
            call()


@pytest.mark.skipif(is_before("5"), reason="it cannot build a Swin transformer without weights")
def test_views_of_a_model_of_upright_pages_are_as_high_and_wide_as_these():
    """Its own processor is Donut's, and a page twice as high as wide."""
    from transformers import DonutProcessor

    model, given = build({**SWIN, "image_size": [56, 28]}, MBART, 2), ImageToTextAdapter()
    page = images("DonutImageProcessor", size={"height": 56, "width": 28}, do_align_long_axis=False)
    given.processor = DonutProcessor(page, processor(KIND).tokenizer)
    batch = given.collate(model, captions(2))
    assert batch["pixel_values"].shape == (2, 3, 56, 28)
    views = {view.name: view for view in given.export_views(model)}
    assert views["vision"].inputs["pixel_values"].shape[1:] == (3, 56, 28)
    with torch.no_grad():
        (seen,) = views["vision"].module(batch["pixel_values"])
        (logits,) = views["decoder"].module(batch["decoder_input_ids"], batch["decoder_attention_mask"], seen)
        expected = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    torch.testing.assert_close(logits, expected)
    assert seen.shape[1:] == views["decoder"].inputs["encoder_hidden_states"].shape[1:]
