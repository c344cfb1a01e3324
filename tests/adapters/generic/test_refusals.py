"""What the generic adapters refuse, and in which words."""

import re

import pytest
import torch
from pico_composites import SIZE, images
from pico_llava import llava_processor
from pico_words import chat, questions, questions_of_one_shape, tokenizer
from table import GENERIC_ROWS
from torch import nn
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.generic.causal_lm import CausalLMAdapter
from ecoflap.adapters.generic.encoder import EncoderAdapter
from ecoflap.adapters.generic.image_text_to_text import ImageTextToTextAdapter
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.anatomy import Block, Source
from ecoflap.core.registry.adapter_for import adapter_for

IS_5 = not is_before("5")


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


@pytest.mark.skipif("paligemma" not in GENERIC_ROWS, reason="this transformers has no PaliGemma")
def test_a_processor_of_another_family_whose_tensors_fit(llava):
    """Images have as many places in the text, by the same token, and as many pixels."""
    model, adapter = llava
    adapter.processor = GENERIC_ROWS["paligemma"].adapter().processor
    with pytest.raises(
        DataError, match=r"the PaliGemmaProcessor is that of models of type paligemma, and this \w+ is of type llava"
    ):
        adapter.collate(model, questions(2))


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


def test_a_question_that_names_its_image_by_itself(llava):
    model, adapter = llava
    (asked,) = questions(1)
    sample = ecoflap.Sample(image=asked.image, question="<image> w1", answers=("w2",))
    why = r"'<image>' is put in for each image, and must not be in" if IS_5 else r"cannot read what its .* do not match"
    with pytest.raises(DataError, match=why):
        adapter.loss(model, adapter.collate(model, [sample]))  # processors before 5 do not count


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

    monkeypatch.setattr(getattr(model, "model", model), "forward", broken)
    with pytest.raises(
        ModelError,
        match=r"this LlavaForConditionalGeneration could not be watched .*AttributeError: no attribute 'image_o",
    ):
        adapter.towers(model)


def test_a_model_whose_forward_fails_behind_its_head(llava, monkeypatch):
    model, adapter = llava
    forward = model.forward

    def broken(input_ids, pixel_values=None, attention_mask=None, **rest):
        forward(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **rest)
        raise AttributeError("no 'image_outputs'")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(
        ModelError, match=r"fails by itself: it had computed its logits, and then .* no 'image_outputs'"
    ):
        adapter.towers(model)


def test_a_model_that_does_not_look_at_its_image(llava, monkeypatch):
    model, adapter = llava
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, pixel_values=None, **rest: forward(input_ids, **rest))
    with pytest.raises(ModelError, match="its logits do not depend on the pixel_values that it was given"):
        adapter.towers(model)
    monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask, **rest: forward(input_ids))
    with pytest.raises(ModelError, match="its forward takes no pixel_values"):
        adapter.towers(model)


def test_a_model_whose_forward_fails_on_a_batch_is_named_with_the_place(llava, monkeypatch):
    model, adapter = llava
    batch = adapter.collate(model, questions(2))
    inner = model.model.language_model if IS_5 else model.language_model.model
    monkeypatch.setattr(inner, "forward", lambda **_: {}["sliding"])
    with pytest.raises(ModelError, match=r"forward of LlavaForCond.* stopped with KeyError: 'sliding' \(modeling_ll"):
        adapter.loss(model, batch)


def test_texts_in_a_form_in_which_padding_cannot_be_told():
    from transformers import LongformerConfig, LongformerForMaskedLM

    config = LongformerConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        attention_window=8, max_position_embeddings=64,
    )  # fmt: skip
    with torch.device("meta"):
        model = LongformerForMaskedLM(config)
    with pytest.raises(
        ModelError, match=r"layer\.0 reads texts as 2×16×32, where it was given 2×13 tokens: it pads them"
    ):
        EncoderAdapter().towers(model)


def test_experts_whose_tokens_cannot_be_followed():
    from transformers import JetMoeConfig, JetMoeForCausalLM

    config = JetMoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_key_value_heads=2, kv_channels=8,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    adapter, windows = CausalLMAdapter(), [ecoflap.Sample(tokens=torch.arange(5, end)) for end in (12, 17)]
    with pytest.raises(ModelError, match=r"experts\.input_linear\.weight\[0\]: a router gives it .* not be followed"):
        ecoflap.check_adapter(adapter, JetMoeForCausalLM(config).eval(), windows)


def test_settings_that_do_not_fit_their_class(tmp_path):
    config = {"model_type": "gemma2", "num_hidden_layers": "two", "architectures": ["Gemma2ForCausalLM"]}
    said = r"^{}: transformers .* cannot build the model: .*(num_hidden_layers|'str' object).*\. Mend the setting that"
    with pytest.raises(ModelError, match=said.format("x")):
        CausalLMAdapter().load(Source("x", config=config), None, "meta")
    here = Source("x", tmp_path, config, ("config.json",))
    with pytest.raises(ModelError, match=said.format(re.escape(f"{tmp_path}/config.json"))):
        CausalLMAdapter().load(here, None, "meta")


def test_images_are_given_in_one_list_to_a_processor_that_takes_no_list_for_each_text(llava, monkeypatch):
    model, adapter = llava
    expected, call = adapter.collate(model, questions(2)), type(adapter.processor).__call__

    def in_one_list(self, images, **rest):
        if isinstance(images[0], list):
            raise ValueError("nested images")
        return call(self, images=images, **rest)

    monkeypatch.setattr(type(adapter.processor), "__call__", in_one_list)
    batch = adapter.collate(model, questions(2))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


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
    others = {
        "WhisperForConditionalGeneration": "reads audio and text, and samples hold images and texts",
        "Qwen2AudioForConditionalGeneration": "reads audio and text",
        "Speech2TextForConditionalGeneration": "reads audio and text",
        "DetrForObjectDetection": r"transformers has DetrForObjectDetection for object detection\. Known",
    }
    if IS_5:  # those before do not say what a class reads, and have no Voxtral
        others |= {
            "WhisperForCausalLM": "reads audio and text",
            "VoxtralForConditionalGeneration": "reads audio and text",
            "InstructBlipVideoForConditionalGeneration": "reads video and text, and samples hold images and texts",
        }
    for name, why in others.items():
        with pytest.raises(EcoflapError, match=rf"no adapter claims a model of type 'x' \({name}\)\. .*{why}"):
            adapter_for(Source("x", config={"model_type": "x", "architectures": [name]}), registry)
