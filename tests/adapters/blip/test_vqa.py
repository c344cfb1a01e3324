"""The BLIP that answers: its loss against the class's own, answers against its own generate, and padded questions."""

from dataclasses import replace
from typing import Any

import pico_blip
import pytest
import torch
from column_norms import column_norms
from pico_blip import VQA, WORDS

from ecoflap import Replay
from ecoflap.adapters.blip.vqa import BlipVqaAdapter
from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Anatomy

SAMPLES = pico_blip.questions(4)
READS = {"text_encoder": "vision", "text_decoder": "encoder"}


@pytest.fixture
def adapter() -> Any:
    return pico_blip.adapter(VQA)


@pytest.fixture(scope="module")
def model() -> Any:
    return pico_blip.build(VQA)


def test_is_an_adapter():
    assert isinstance(BlipVqaAdapter(), Adapter)


def test_cross_attention_reads_the_tower_before_and_everything_else_its_own(adapter: Any, model: Any):
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, pico_blip.LOGITS)
    layers = {layer.name: layer for _, layer in anatomy.layers()}
    for name, layer in layers.items():
        across = "crossattention.self.key" in name or "crossattention.self.value" in name
        expected = READS[name.split(".")[0]] if across else "decoder" if ".cls." in name else ""
        assert layer.reads == expected, name
    assert len([name for name in layers if "text_decoder.bert.encoder.layer.0." in name]) == 10
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {f"{name}.weight" for name in linears} == set(layers)


def by_hand(model: Any, adapter: Any, sample: Sample) -> list[float]:
    """In float64, one question at a time, without padding and one token after the other."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    inputs = adapter.processor(images=sample.image, text=sample.question, return_tensors="pt")
    answer = [pico_blip.BEGIN, *(WORDS.index(word) for word in sample.answers[0].split()), 3]
    with torch.no_grad():
        seen = exact.vision_model(inputs["pixel_values"].double()).last_hidden_state
        read = exact.text_encoder(inputs["input_ids"], encoder_hidden_states=seen).last_hidden_state
    terms = []
    for at in range(1, len(answer)):
        with torch.no_grad():
            made = exact.text_decoder(torch.tensor([answer[:at]]), encoder_hidden_states=read).logits[0, -1]
        logs = made.double().log_softmax(-1)
        terms.append(-float(0.9 * logs[answer[at]] + 0.1 * logs.mean()))
    return terms


def test_loss_is_the_smoothed_mean_over_the_first_answers(adapter: Any, model: Any):
    batch = adapter.collate(model, SAMPLES)
    with torch.no_grad():
        loss, theirs = adapter.loss(model, batch), model(**batch).loss
    terms = [term for sample in SAMPLES for term in by_hand(model, adapter, sample)]
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    assert float(loss) == pytest.approx(float(theirs), rel=1e-6)


def test_of_one_question_it_is_the_loss_of_a_model_that_nobody_has_touched(adapter: Any):
    fresh = pico_blip.build(VQA)
    batch = adapter.collate(fresh, SAMPLES[:1])
    with torch.no_grad():
        theirs = float(fresh(**batch).loss)
        assert float(adapter.loss(fresh, batch)) == pytest.approx(theirs, rel=1e-6)


def test_a_questions_padding_is_not_read_by_the_decoder(adapter: Any):
    """It would be in transformers 5, whose blocks do not hand the mask on, so that answers changed with the batch."""
    model = pico_blip.build(VQA)
    batch = adapter.collate(model, SAMPLES)
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        apart = [adapter.loss(model, adapter.collate(model, [sample])) for sample in SAMPLES]
        counts = [len(adapter.tokens_of(model, sample.answers[0])) + 1 for sample in SAMPLES]
        expected = sum(float(loss) * count for loss, count in zip(apart, counts, strict=True)) / sum(counts)
        assert float(adapter.loss(model, batch)) == pytest.approx(expected, rel=1e-6)
    adapter.loss(model, batch)
    hooks = [len(module._forward_pre_hooks) for module in model.text_decoder.modules()]
    assert max(hooks) <= 1


def test_its_tokens_are_those_of_its_own_processor(adapter: Any, model: Any):
    batch = adapter.collate(model, SAMPLES)
    asked = [str(sample.question) for sample in SAMPLES]
    theirs = adapter.processor([sample.image for sample in SAMPLES], asked, padding=True, return_tensors="pt")
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(batch[name], theirs[name]), name
    answers = adapter.processor(text=[sample.answers[0] for sample in SAMPLES], padding=True, return_tensors="pt")
    assert torch.equal(batch["decoder_input_ids"][:, 1:], answers["input_ids"][:, 1:])
    assert set(batch["decoder_input_ids"][:, 0].tolist()) == {pico_blip.BEGIN}


@pytest.fixture(scope="module")
def lively() -> Any:
    """With weights so large that it answers one question otherwise than another."""
    model = pico_blip.build(VQA)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4
    return model


@pytest.mark.parametrize("generation", [Generation(6, 0), Generation(6, 0, 3, -1.0)], ids=str)
def test_it_answers_what_its_own_generate_does(generation: Generation, adapter: Any, lively: Any):
    model = lively
    found = adapter.generate(model, SAMPLES, generation)
    for sample, said in zip(SAMPLES, found, strict=True):
        inputs = adapter.processor(images=sample.image, text=sample.question, return_tensors="pt")
        theirs = model.generate(
            **inputs, max_new_tokens=6, num_beams=generation.num_beams, do_sample=False,
            **({"length_penalty": -1.0} if generation.num_beams > 1 else {}),
        )[0].tolist()[1:]  # fmt: skip
        assert said.tokens == tuple(theirs[: theirs.index(3)] if 3 in theirs else theirs)
        assert said == adapter.generate(model, [sample], generation)[0]
    assert len({said.tokens for said in found}) > 1


def test_statistics_count_patches_questions_and_answers(adapter: Any, model: Any):
    batch = adapter.collate(model, SAMPLES)
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(adapter.towers(model), adapter.layers))
    counts = {
        "vision": 5 * len(SAMPLES),
        "encoder": int(batch["attention_mask"].sum()),
        "decoder": int((batch["labels"][:, 1:] != -100).sum()),
    }
    for index, block in enumerate(replay.blocks):
        by_name = {layer.name: layer for layer in replay.anatomy.layers_of[block.name]}
        for name, statistic in column_norms(replay, index).items():
            assert statistic.tokens == counts[by_name[name].reads or block.tower], name
        replay.advance(index)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, "1 of 2 samples have none"),
        ({"question": None}, "answers questions on images: sample 1 of a batch has none"),
        ({"answers": ()}, "sample 1 of a batch has neither a text nor an answer"),
        ({"question": "w1 " * 39}, "a text has 41 tokens, and the model reads 40"),
    ],
)
def test_collate_says_what_is_missing(change: dict[str, Any], problem: str, adapter: Any, model: Any):
    with pytest.raises(DataError, match=problem):
        adapter.collate(model, [SAMPLES[0], replace(SAMPLES[1], **change)])


def test_nothing_is_said_to_no_question(adapter: Any, model: Any):
    with pytest.raises(DataError, match="sample 0 of a batch has none"):
        adapter.generate(model, [replace(SAMPLES[0], question="")], Generation(3, 0))
