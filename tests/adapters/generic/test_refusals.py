"""What the generic adapters refuse, and in which words."""

import pytest
import torch
from pico_composites import SIZE, images
from pico_llava import llava_processor
from pico_words import chat, questions, questions_of_one_shape, tokenizer
from table import GENERIC_ROWS
from torch import nn

import ecoflap
from ecoflap.adapters.generic.image_text_to_text import ImageTextToTextAdapter
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.anatomy import Block, Source
from ecoflap.core.registry.adapter_for import adapter_for


@pytest.fixture
def llava() -> tuple[nn.Module, ImageTextToTextAdapter]:
    adapter = ImageTextToTextAdapter()
    adapter.processor = llava_processor()
    return GENERIC_ROWS["llava"].build(), adapter


def test_a_processor_that_is_missing_or_reads_no_text(llava):
    model, adapter = llava
    adapter.processor = None
    with pytest.raises(DataError, match=r"needs a processor for images and text, and came without a processor: put"):
        adapter.collate(model, questions(2))
    adapter.processor = images("CLIPImageProcessor")
    with pytest.raises(DataError, match=r"came with a CLIPImageProcessor"):
        adapter.collate(model, questions(2))


def test_a_processor_that_does_not_fit_the_model(llava):
    model, adapter = llava
    adapter.processor.patch_size = 7
    batch = adapter.collate(model, questions(2))
    with pytest.raises(
        DataError,
        match=r"LlavaForConditionalGeneration cannot read what its LlavaProcessor made: Image features .* not match",
    ):
        adapter.loss(model, batch)


def test_a_chat_template_that_leaves_images_out_or_fails(llava):
    model, adapter = llava
    adapter.processor.chat_template = chat("w1")
    with pytest.raises(DataError, match=r"place for its image|cannot read the images and texts"):
        adapter.collate(model, questions(2))
    adapter.processor.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataError, match=r"the chat template of the LlavaProcessor failed"):
        adapter.collate(model, questions(2))


def test_samples_without_an_image_or_without_anything_to_say(llava):
    model, adapter = llava
    with pytest.raises(DataError, match="looks at images, and 1 of 1 samples have none"):
        adapter.collate(model, [ecoflap.Sample(text="w1 w2")])
    (asked,) = questions(1)
    with pytest.raises(DataError, match="sample 0 of a batch has neither a text nor an answer"):
        adapter.collate(model, [ecoflap.Sample(image=asked.image, question="w1")])


def test_images_that_are_padded_to_one_shape():
    row = GENERIC_ROWS["idefics2"]
    model, adapter = row.build(), row.adapter()
    wide = questions_of_one_shape(2)
    adapter.collate(model, wide)
    odd = ecoflap.Sample(image=wide[0].image.resize((3 * SIZE, SIZE)), question="w1", answers=("w2",))
    with pytest.raises(DataError, match="of unequal shapes, and this model pads them to one: set batch_size to 1"):
        adapter.collate(model, [wide[0], odd])


def test_a_model_that_does_not_run_on_what_is_made_for_it(llava, monkeypatch):
    model, adapter = llava

    def broken(*args, **kwargs):
        raise AttributeError("no attribute 'image_outputs'")

    monkeypatch.setattr(model.model, "forward", broken)
    with pytest.raises(
        ModelError,
        match=r"this LlavaForConditionalGeneration could not be watched .*AttributeError: no attribute 'image_o",
    ):
        adapter.towers(model)


def test_a_block_that_it_did_not_give(llava):
    _, adapter = llava
    with pytest.raises(ModelError, match=r"x is no block that ImageTextToTextAdapter\.towers\(\) gave"):
        adapter.layers(Block("x", nn.Linear(2, 2), "language"))


def test_an_encoder_whose_tokenizer_masks_nothing():
    row = GENERIC_ROWS["bert"]
    adapter = row.adapter()
    adapter.processor = tokenizer()
    with pytest.raises(DataError, match="came without a tokenizer that has a mask_token"):
        adapter.collate(row.build(), [ecoflap.Sample(tokens=torch.arange(5, 9))])


def test_models_of_code_of_their_own_and_those_that_hear_are_claimed_by_none():
    registry = ecoflap.load_registry()
    own = {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    with pytest.raises(EcoflapError, match=r"code of its own, which is not run here: modeling_mine\.py \(Mine\)\."):
        adapter_for(Source("x", config=own), registry)
    hears = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}
    with pytest.raises(EcoflapError, match=r"no adapter claims a model of type 'whisper' \(WhisperForConditionalGen"):
        adapter_for(Source("x", config=hears), registry)
