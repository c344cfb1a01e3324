"""The BLIP that captions: its loss against the class's own, what it says against its own generate, and bad input."""

from pathlib import Path
from typing import Any

import pico_blip
import pytest
import torch
import torch.nn.functional as F
from pico_blip import CAPTION, WORDS

from ecoflap.adapters.blip.caption import BlipCaptionAdapter
from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import in_memory, open_source

SAMPLES = pico_blip.captions(4)
PATCHES = (pico_blip.SIZE // 14) ** 2 + 1


@pytest.fixture
def adapter() -> Any:
    return pico_blip.adapter(CAPTION)


@pytest.fixture(scope="module")
def model() -> Any:
    return pico_blip.build(CAPTION)


def test_is_an_adapter():
    assert isinstance(BlipCaptionAdapter(), Adapter)


@pytest.mark.parametrize("kind", pico_blip.KINDS)
def test_each_class_is_claimed_by_its_own_adapter_alone(kind: str, tmp_path: Path):
    built = pico_blip.build(kind)
    pico_blip.adapter(kind).save(built, tmp_path)
    sources = in_memory(built), Source("mine", model=built), open_source(str(tmp_path), tmp_path)
    for source in sources:
        assert [made for made in pico_blip.KINDS.values() if made().matches(source)] == [pico_blip.KINDS[kind]]


@pytest.mark.parametrize("architecture", ["BlipModel", None])
def test_another_class_is_none_of_them(architecture: str | None):
    config = {"model_type": "blip", **({"architectures": [architecture]} if architecture else {})}
    assert not any(made().matches(Source("x", config=config)) for made in pico_blip.KINDS.values())


def by_hand(model: Any, adapter: Any, sample: Sample, smoothing: float) -> list[float]:
    """In float64, one token at a time and without padding, from what the model gives to all that stands before it."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    prompt = [WORDS.index(word) for word in (sample.question or "").split()]
    ids = [pico_blip.BEGIN, *prompt, *(WORDS.index(word) for word in str(sample.text).split()), 3]
    pixels = adapter.processor(images=sample.image, return_tensors="pt")["pixel_values"].double()
    terms = []
    for at in range(1 + len(prompt), len(ids)):
        with torch.no_grad():
            made = exact(pixel_values=pixels, input_ids=torch.tensor([ids[:at]])).logits[0, -1].double()
        logs = made.log_softmax(-1)
        terms.append(-float((1 - smoothing) * logs[ids[at]] + smoothing * logs.mean()))
    return terms


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_smoothed_mean_over_what_is_said(smoothing: float, adapter: Any):
    model = pico_blip.build(CAPTION, label_smoothing=smoothing)
    batch = adapter.collate(model, SAMPLES)
    with torch.no_grad():
        loss, theirs = adapter.loss(model, batch), model(**batch).loss
    terms = [term for sample in SAMPLES for term in by_hand(model, adapter, sample, smoothing)]
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    assert float(loss) == pytest.approx(float(theirs), rel=1e-6)


def test_its_tokens_are_those_of_its_own_processor(adapter: Any, model: Any):
    """But for the first, where a decoder begins with a token of its own."""
    batch = adapter.collate(model, SAMPLES)
    whole = [f"{sample.question} {sample.text}" if sample.question else str(sample.text) for sample in SAMPLES]
    theirs = adapter.processor([sample.image for sample in SAMPLES], whole, padding=True, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], theirs["pixel_values"])
    assert torch.equal(batch["attention_mask"], theirs["attention_mask"])
    assert torch.equal(batch["input_ids"][:, 1:], theirs["input_ids"][:, 1:])
    assert set(batch["input_ids"][:, 0].tolist()) == {pico_blip.BEGIN}


def test_a_prompt_is_read_and_not_said(adapter: Any, model: Any):
    sample = Sample(image=SAMPLES[0].image, question="a picture of", text="w1 w2")
    batch = adapter.collate(model, [sample])
    assert batch["labels"].tolist() == [[-100] * 4 + [WORDS.index("w1"), WORDS.index("w2"), 3]]
    without = adapter.collate(model, [Sample(image=sample.image, text="w1 w2")])
    assert without["labels"].tolist() == [[-100, WORDS.index("w1"), WORDS.index("w2"), 3]]


def test_a_prompt_of_the_adapters_own_stands_where_none_is(adapter: Any, model: Any):
    prompted = BlipCaptionAdapter(prompt="a picture of")
    prompted.processor = adapter.processor
    bare, asked = (Sample(image=SAMPLES[0].image, question=one, text="w1 w2") for one in (None, "a picture of"))
    batches = prompted.collate(model, [bare]), adapter.collate(model, [asked])
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[1])
    generation = Generation(4, 0)
    assert prompted.generate(model, [bare], generation) == adapter.generate(model, [asked], generation)


def test_what_ends_a_text_is_said_and_never_read(adapter: Any, model: Any):
    batch = adapter.collate(model, SAMPLES)
    assert adapter.tokens(model, batch, "vision").tolist() == [[2] * PATCHES] * len(SAMPLES)
    found = adapter.tokens(model, batch, "decoder")
    assert found.dtype == torch.int8
    assert found.sum(1).tolist() == (batch["attention_mask"].sum(1) - 1).tolist()
    given: list[torch.Size] = []
    handle = model.text_decoder.bert.register_forward_hook(lambda _, args, made: given.append(made[0].shape))
    adapter.loss(model, batch)
    handle.remove()
    assert given[0][:2] == found.shape


@pytest.mark.parametrize("generation", [Generation(6, 0), Generation(5, 2), Generation(6, 0, 3, 1.0)], ids=str)
def test_it_says_what_its_own_generate_does(generation: Generation, adapter: Any, model: Any):
    """One at a time, because its own generate puts a prompt's padding before the prompt, and so moves it."""
    found = adapter.generate(model, SAMPLES, generation)
    for sample, said in zip(SAMPLES, found, strict=True):
        inputs = adapter.processor(images=sample.image, text=sample.question or "", return_tensors="pt")
        theirs = model.generate(
            **inputs, max_new_tokens=generation.max_new_tokens, min_new_tokens=generation.min_new_tokens or None,
            num_beams=generation.num_beams, do_sample=False,
        )[0].tolist()  # fmt: skip
        tokens = theirs[inputs["input_ids"].shape[1] - 1 :]
        ended = 3 in tokens
        assert said.tokens == tuple(tokens[: tokens.index(3)] if ended else tokens)
        assert said.ended is ended
    assert len({said.tokens for said in found}) > 1


def test_a_text_is_the_same_whatever_else_is_in_the_batch(adapter: Any, model: Any):
    generation = Generation(6, 0)
    together = adapter.generate(model, SAMPLES, generation)
    assert together == [adapter.generate(model, [sample], generation)[0] for sample in SAMPLES]


def test_an_image_is_seen_once_in_a_batch(adapter: Any, model: Any):
    samples = [SAMPLES[0], SAMPLES[1], Sample(image=SAMPLES[0].image.copy(), question="a")]
    seen: list[int] = []
    handle = model.vision_model.register_forward_hook(lambda _, args, made: seen.append(len(made[0])))
    adapter.generate(model, samples, Generation(3, 0))
    handle.remove()
    assert seen == [2]


def test_tokens_of_a_text_are_those_it_is_taught_by(adapter: Any, model: Any):
    labels = adapter.collate(model, SAMPLES[:1])["labels"][0]
    assert adapter.tokens_of(model, str(SAMPLES[0].text)) == tuple(labels[labels != -100].tolist()[:-1])


def test_padding_changes_nothing(adapter: Any, model: Any):
    alone = adapter.collate(model, SAMPLES[:1])
    padded = {name: tensor if name == "pixel_values" else F.pad(tensor, (0, 4)) for name, tensor in alone.items()}
    padded["labels"] = F.pad(alone["labels"], (0, 4), value=-100)
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(model, padded), adapter.loss(model, alone), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (Sample(text="a"), "1 of 2 samples have none"),
        (Sample(image=SAMPLES[0].image), "sample 1 of a batch has neither a text nor an answer"),
        (Sample(image=SAMPLES[0].image, text="w1 " * 39), r"a text has 41 tokens, and the model reads 40"),
    ],
)
def test_collate_says_what_is_missing(sample: Sample, problem: str, adapter: Any, model: Any):
    with pytest.raises(DataError, match=problem):
        adapter.collate(model, [SAMPLES[0], sample])


def test_a_processor_that_is_missing_or_does_not_fit(adapter: Any, model: Any):
    whole = adapter.processor
    adapter.processor = None
    with pytest.raises(DataError, match=r"preprocessor_config\.json .* give ecoflap\.run a processor"):
        adapter.collate(model, SAMPLES)
    adapter.processor = whole.image_processor
    with pytest.raises(DataError, match="needs a tokenizer beside its image processor"):
        adapter.collate(model, SAMPLES)
    adapter.processor = pico_blip.processor(size=14)  # whose patches would be put where others belong
    with pytest.raises(DataError, match="takes images of 28×28, and its processor makes 14×14: set size in"):
        adapter.loss(model, adapter.collate(model, SAMPLES))
    with pytest.raises(DataError, match="takes images of 28×28"):
        adapter.generate(model, SAMPLES, Generation(3, 0))


@pytest.mark.parametrize("wrong", [{"sep_token_id": 2}, {"vocab_size": 20, "bos_token_id": 1}])
def test_a_tokenizer_of_another_model_is_refused(wrong: dict[str, int], adapter: Any):
    with pytest.raises(DataError, match=r"the tokenizer does not fit the model: it makes \[2, .*sep_token_id"):
        adapter.collate(pico_blip.build(CAPTION, **wrong), SAMPLES)


def test_no_room_for_what_is_to_be_said(adapter: Any, model: Any):
    said = r"a prompt of 4 tokens \('a picture of'\) and max_new_tokens: 37 are more than the 40"
    with pytest.raises(DataError, match=said):
        adapter.generate(model, SAMPLES, Generation(37, 0))
