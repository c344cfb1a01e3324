import json
import math
from pathlib import Path
from typing import Any

import pico_blip2
import pico_t5
import pytest
import torch
import torch.nn.functional as F
from column_norms import column_norms

from ecoflap import Replay
from ecoflap.adapters.blip2 import Blip2Adapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

TEXTS = ("t5", "opt", "llama")
SAMPLES = [*pico_blip2.captions(2), *pico_blip2.questions(2)]
IMAGE, QUERIES = pico_blip2.IMAGE_TOKEN, pico_blip2.QUERIES


@pytest.fixture(params=TEXTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(question: str | None, said: str) -> Sample:
    return Sample(image=pico_blip2.picture(0), question=question, answers=(said, "not read"))


def test_is_an_adapter():
    assert isinstance(Blip2Adapter(), Adapter)


@pytest.mark.parametrize(
    ("config", "claimed"),
    [
        ({"model_type": "blip-2"}, True),
        ({"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}, True),
        ({"model_type": "blip-2", "architectures": ["Blip2ForImageTextRetrieval"]}, False),
        ({"model_type": "instructblip", "architectures": ["InstructBlipForConditionalGeneration"]}, False),
        ({}, False),
    ],
)
def test_claims_by_configuration(config: dict[str, Any], claimed: bool):
    assert Blip2Adapter().matches(Source("x", config=config)) is claimed


def test_claims_a_model_in_memory_by_its_structure():
    model = pico_blip2.build()
    assert Blip2Adapter().matches(in_memory(model))
    assert Blip2Adapter().matches(Source("mine", model=model))
    assert not Blip2Adapter().matches(in_memory(pico_blip2.build_retrieval()))
    assert not Blip2Adapter().matches(in_memory(model.language_model))


def test_anatomy(kind: str):
    model, adapter = pico_blip2.build(kind), Blip2Adapter()
    names = {"language_projection", "language_model.lm_head"}
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, names)
    language = {"t5": ["encoder", "decoder"]}.get(kind, ["language"])
    expected = ["vision", "qformer", "language_projection", *language, "language_model.lm_head"]
    assert [tower.name for tower in anatomy.towers] == expected
    assert [tower.name for tower in anatomy.towers if not tower.prunable and not tower.outside] == ["qformer"]
    layers = {layer.name: layer for _, layer in anatomy.layers()}
    vision = [name.split("layers.0.")[1] for name in layers if name.startswith("vision_model.encoder.layers.0.")]
    assert vision == [f"{name}.weight" for name in ("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2")]
    assert {name for name, layer in layers.items() if layer.reads == "vision"} == {
        f"qformer.encoder.layer.{i}.crossattention.attention.{matrix}.weight"
        for i in (0, 2)
        for matrix in ("key", "value")
    }
    assert layers["language_projection.weight"].reads == "qformer"
    assert layers["language_model.lm_head.weight"].reads == ""
    assert layers["language_model.lm_head.weight"].layout == "batch token"
    inside = {f"{block.name}.{name}.weight" for block in anatomy.blocks for name, module in block.module.named_modules()
              if isinstance(module, torch.nn.Linear) and name}  # fmt: skip
    assert set(layers) == inside | {f"{name}.weight" for name in names}


def test_an_opt_with_a_narrow_embedding_has_two_more_matrices():
    config = pico_blip2.config("opt")
    config.text_config.word_embed_proj_dim = 16
    from transformers import Blip2ForConditionalGeneration

    model, adapter = Blip2ForConditionalGeneration(config), Blip2Adapter()
    names = [tower.name for tower in adapter.towers(model)]
    inside = "language_model.model.decoder"
    assert names[3:] == [f"{inside}.project_in", "language", f"{inside}.project_out", "language_model.lm_head"]


def test_a_text_model_of_another_layout_is_refused():
    model = pico_blip2.build("llama")
    model.language_model.model = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"text model of type 'llama' .* none of T5, OPT and LLaMA"):
        Blip2Adapter().towers(model)


def test_its_tokens_are_those_of_the_familys_own_processor(kind: str):
    """Images before everything else, then what the tokenizer makes of the question."""
    adapter, samples = pico_blip2.adapter(kind), pico_blip2.questions(3)
    batch = adapter.collate(pico_blip2.build(kind), samples)
    for sample, ids, mask, labels in zip(
        samples, *(batch[n] for n in ("input_ids", "attention_mask", "labels")), strict=True
    ):
        theirs = adapter.processor(images=sample.image, text=sample.question, return_tensors="pt")
        asked = theirs["input_ids"][0].tolist()
        real = ids[mask.bool()].tolist()
        said = labels[labels != -100].tolist()
        assert said == [*[pico_t5.WORDS.index(word) for word in sample.answers[0].split()], 1]
        if kind == "t5":
            assert real == asked
        else:
            assert real == [*asked, *said]
            assert labels.tolist() == [-100] * len(asked) + said + [-100] * (len(labels) - len(real))
    images = [sample.image for sample in samples]
    pixels = adapter.processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels)


def test_a_caption_is_said_to_no_question(kind: str):
    adapter = pico_blip2.adapter(kind)
    batch = adapter.collate(pico_blip2.build(kind), [Sample(image=pico_blip2.picture(0), text="a w1")])
    read = {"t5": [1]}.get(kind, [2, 6, 11, 1])
    assert batch["input_ids"].tolist() == [[IMAGE] * QUERIES + read]
    said = {"t5": [6, 11, 1]}.get(kind, [-100] * (QUERIES + 1) + [6, 11, 1])
    assert batch["labels"].tolist() == [said]


def test_a_decoders_text_ends_as_its_configuration_says():
    """OPT in BLIP-2 was taught to end with a line break, and its tokenizer ends a text with ``</s>``."""
    model, adapter = pico_blip2.build("opt"), pico_blip2.adapter("opt")
    model.config.text_config.eos_token_id = [9, 1]
    assert adapter.collate(model, [ask("what", "a w1")])["labels"].tolist() == [[-100] * (QUERIES + 2) + [6, 11, 9]]
    model.config.text_config.eos_token_id = None
    assert adapter.collate(model, [ask("what", "a w1")])["labels"].tolist() == [[-100] * (QUERIES + 2) + [6, 11, 1]]


def test_a_blank_between_question_and_answer_belongs_to_the_answer():
    """As a tokenizer of bytes has it, where a blank is part of the word after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "what", "?", "Ġis", "Ġa", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model, adapter = pico_blip2.build("opt"), pico_blip2.adapter("opt")
    adapter.processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert adapter.collate(model, [ask("what is?", "a")])["labels"].tolist() == [[-100] * (QUERIES + 3) + [5, 1]]


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (Sample(text="a"), "1 of 2 samples have none"),
        (Sample(image=pico_blip2.picture(0)), "sample 1 of a batch has neither a text nor an answer"),
        (Sample(image=pico_blip2.picture(0), question="what"), "neither a text nor an answer"),
    ],
)
def test_collate_says_what_is_missing(sample: Sample, problem: str, kind: str):
    with pytest.raises(DataError, match=problem):
        pico_blip2.adapter(kind).collate(pico_blip2.build(kind), [ask("what", "a"), sample])


def test_collate_needs_a_processor():
    model, adapter = pico_blip2.build(), pico_blip2.adapter()
    adapter.processor = adapter.processor.image_processor
    with pytest.raises(DataError, match="needs a tokenizer beside its image processor"):
        adapter.collate(model, [ask("what", "a")])
    adapter.processor = None
    with pytest.raises(DataError, match=r"preprocessor_config\.json .* give ecoflap\.run a processor"):
        adapter.collate(model, [ask("what", "a")])


def test_a_configuration_without_image_token_is_refused(kind: str):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    batch = adapter.collate(model, SAMPLES)
    model.config.image_token_index = None
    for use in (lambda: adapter.collate(model, SAMPLES), lambda: adapter.loss(model, batch)):
        with pytest.raises(ModelError, match="has no image_token_index"):
            use()


@pytest.mark.parametrize(("at", "count"), [(slice(0, QUERIES), 0), (slice(0, 1), QUERIES - 1), (slice(-1, None), 5)])
def test_a_batch_that_does_not_show_its_image_is_refused(at: slice, count: int, kind: str):
    adapter, model = pico_blip2.adapter(kind), pico_blip2.build(kind)
    batch = adapter.collate(model, SAMPLES)
    batch["input_ids"][1, at] = IMAGE if count > QUERIES else 5
    with pytest.raises(DataError, match=rf"sample 1 of a batch has {count} image tokens .* its image needs 4"):
        adapter.loss(model, batch)


def test_without_the_refusal_no_gradient_would_reach_the_vision_tower(kind: str, monkeypatch: pytest.MonkeyPatch):
    adapter, model = pico_blip2.adapter(kind), pico_blip2.build(kind)
    batch = adapter.collate(model, SAMPLES)
    monkeypatch.setattr("ecoflap.adapters.blip2._refuse_blind", lambda *_: None)
    seen = []
    for ids in (batch["input_ids"], torch.where(batch["input_ids"] == IMAGE, 5, batch["input_ids"])):
        model.zero_grad()
        adapter.loss(model, {**batch, "input_ids": ids}).backward()
        gradient = model.vision_model.encoder.layers[0].mlp.fc1.weight.grad
        seen.append(0.0 if gradient is None else float(gradient.abs().max()))
    assert seen[0] > 1e-6
    assert seen[1] == 0


def said_by_hand(model: Any, batch: Any) -> float:
    """In float64, one sample at a time and without padding; T5's decoder sees only what precedes each token."""
    exact = type(model)(model.config).double().eval()
    if hasattr(model.language_model, "shared"):
        pico_t5.untie(exact.language_model)
    exact.load_state_dict(model.state_dict())
    terms = []
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        inputs = {"pixel_values": batch["pixel_values"][row, None], "input_ids": batch["input_ids"][row, None, :length]}
        labels = batch["labels"][row]
        for at in (labels != -100).nonzero()[:, 0].tolist():
            if hasattr(model.language_model, "shared"):
                before = torch.cat([torch.zeros(1, dtype=torch.int64), labels[:at]])[None]
                logits = exact(**inputs, decoder_input_ids=before, use_cache=False).logits[0, -1]
            else:
                logits = exact(**{**inputs, "input_ids": inputs["input_ids"][:, :at]}, use_cache=False).logits[0, -1]
            terms.append(-float(logits.detach().double().log_softmax(-1)[labels[at]]))
    return math.fsum(terms) / len(terms)


def test_loss_is_the_mean_over_what_is_said(kind: str):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    batch = adapter.collate(model, SAMPLES)
    with torch.no_grad():
        loss, theirs = adapter.loss(model, batch), model(**batch, use_cache=False).loss
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(said_by_hand(model, batch), rel=1e-6)
    torch.testing.assert_close(loss.float(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str, kind: str):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    alone = adapter.collate(model, SAMPLES[:1])
    at = (0, 5) if side == "right" else (5, 0)
    padded = {
        "pixel_values": alone["pixel_values"],
        "input_ids": F.pad(alone["input_ids"], at),
        "attention_mask": F.pad(alone["attention_mask"], at),
        "labels": F.pad(alone["labels"], (0, 5) if kind == "t5" else at, value=-100),
    }
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(model, padded), adapter.loss(model, alone), rtol=1e-5, atol=0)


def test_tokens(kind: str):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    batch = adapter.collate(model, SAMPLES)
    rows = len(SAMPLES)
    patches = (pico_blip2.SIZE // 14) ** 2 + 1
    assert adapter.tokens(model, batch, "vision").tolist() == [[2] * patches] * rows
    assert adapter.tokens(model, batch, "qformer").tolist() == [[2] * QUERIES] * rows
    text = adapter.tokens(model, batch, "encoder" if kind == "t5" else "language")
    assert text.dtype == torch.int8
    assert torch.equal(text == 2, batch["input_ids"] == IMAGE)
    assert torch.equal(text > 0, batch["attention_mask"].bool())
    assert int((text == 0).sum()) > 0
    if kind == "t5":
        text = adapter.tokens(model, batch, "decoder")
        assert torch.equal(text.bool(), batch["labels"] != -100)
    assert torch.equal(adapter.tokens(model, batch, "language_model.lm_head"), text)


def test_statistics_count_patches_queries_and_text(kind: str):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    batch = adapter.collate(model, SAMPLES)
    names = {"language_projection", "language_model.lm_head"}
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(adapter.towers(model), adapter.layers, names))
    rows, text, said = len(SAMPLES), int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
    counts = {"vision": 5 * rows, "qformer": 4 * rows, "encoder": text, "language": text, "decoder": said}
    counts["language_model.lm_head"] = said if kind == "t5" else text
    for index, block in enumerate(replay.blocks):
        by_name = {layer.name: layer for layer in replay.anatomy.layers_of[block.name]}
        for name, statistic in column_norms(replay, index).items():
            assert statistic.tokens == counts[by_name[name].reads or block.tower], name
        replay.advance(index)


def test_max_length():
    assert pico_blip2.adapter("t5").max_length(pico_blip2.build("t5")) is None
    assert pico_blip2.adapter("opt").max_length(pico_blip2.build("opt")) == 64 - QUERIES


def test_loads_a_folder(kind: str, tmp_path: Path):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    adapter.save(model, tmp_path)
    source, other = open_source(str(tmp_path), tmp_path), Blip2Adapter()
    assert other.matches(source)
    weightless = other.load(source, None, "meta")
    assert other.processor is None
    assert {parameter.device.type for parameter in weightless.parameters()} == {"meta"}
    names = [
        [layer.name for _, layer in Anatomy.of(other.towers(m), other.layers).layers()] for m in (weightless, model)
    ]
    assert names[0] == names[1]
    loaded = other.load(source, None, "cpu")
    assert not loaded.training
    ours, theirs = adapter.collate(model, SAMPLES), other.collate(loaded, SAMPLES)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=0.05)  # torchvision or PIL
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_saved_its_head_stays_tied_or_untied(kind: str, tmp_path: Path):
    model, adapter = pico_blip2.build(kind), pico_blip2.adapter(kind)
    batch = adapter.collate(model, SAMPLES)
    adapter.save(model, tmp_path)
    again = adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    text = again.language_model
    assert (text.lm_head.weight is text.get_input_embeddings().weight) is (kind == "opt")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"].get("tie_word_embeddings", True) is (kind == "opt")
    assert torch.equal(again(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_it_is_what_it_was_after_saving(dtype: torch.dtype, kind: str, tmp_path: Path):
    """transformers writes float32 into its configuration, the type of the first weight, where that is kept."""
    adapter = pico_blip2.adapter(kind)
    adapter.save(pico_blip2.build(kind), tmp_path / "wide")
    half = adapter.load(open_source(str(tmp_path / "wide"), tmp_path), dtype, "cpu")
    adapter.save(half, tmp_path / "half")
    theirs = pico_blip2.reload("Blip2ForConditionalGeneration", tmp_path / "half")
    for again in (adapter.load(open_source(str(tmp_path / "half"), tmp_path), None, "cpu"), theirs):
        torch.testing.assert_close(again.state_dict(), half.state_dict(), rtol=0, atol=0)


def test_float16_keeps_the_qformer_in_float32(kind: str, tmp_path: Path):
    adapter = pico_blip2.adapter(kind)
    adapter.save(pico_blip2.build(kind), tmp_path)
    model = adapter.load(open_source(str(tmp_path), tmp_path), torch.float16, "cpu")
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert {name.split(".")[0] for name in wide if ".wo." not in name} == {"qformer", "query_tokens"}
    with torch.no_grad():
        half, exact = (
            adapter.loss(model, adapter.collate(model, SAMPLES)),
            adapter.loss(model.float(), adapter.collate(model, SAMPLES)),
        )
    assert float(half) == pytest.approx(float(exact), rel=1e-3)
