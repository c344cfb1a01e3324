"""Texts that adapters have models make, checked against loops over the models' own forward."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pico_blip2
import pico_decoder
import pico_t5
import pytest
import torch
from torch import Tensor, nn

from ecoflap.adapters.blip2 import Blip2Adapter
from ecoflap.adapters.blip2_retrieval import Blip2RetrievalAdapter
from ecoflap.adapters.clip import ClipAdapter
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.abilities import Generates, Generation, Said, offers
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.core.forward.placement import Placement, blocks_held
from ecoflap.core.model.anatomy import Anatomy

GREEDY = Generation(max_new_tokens=7, min_new_tokens=0)
NEVER = 99  # a token that no pico model has
BEAMS = Generation(max_new_tokens=7, min_new_tokens=0, num_beams=4, length_penalty=-1.0)


@dataclass(frozen=True)
class Speaker:
    """A pico model whose texts differ from image to image and from question to question.

    :param text: The model inside that makes them.
    """

    model: Any
    adapter: Any
    samples: Sequence[Sample]

    @property
    def text(self) -> Any:
        return getattr(self.model, "language_model", self.model)

    def says(self, generation: Generation, samples: Sequence[Sample] | None = None) -> list[Said]:
        return self.adapter.generate(self.model, samples or self.samples, generation)

    def tokens(self, generation: Generation = GREEDY) -> list[tuple[int, ...]]:
        return [said.tokens for said in self.says(generation)]


def lively(model: nn.Module) -> Any:
    """With larger weights, or a pico model says one and the same word to everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def llama_adapter() -> LlamaAdapter:
    made = LlamaAdapter()
    made.processor = pico_t5.tokenizer()  # which ends a text, as a decoder's is not to go on from
    return made


def speaker(name: str) -> Speaker:
    if name == "t5":
        return Speaker(lively(pico_t5.build()), pico_t5.adapter(), pico_t5.questions(5))
    if name == "llama":
        return Speaker(lively(pico_decoder.build()), llama_adapter(), pico_t5.questions(5))
    kind = name.removeprefix("blip2_")
    return Speaker(lively(pico_blip2.build(kind)), pico_blip2.adapter(kind), pico_blip2.questions(5))


@pytest.fixture(params=["blip2_t5", "blip2_opt", "blip2_llama", "t5", "llama"])
def any_speaker(request: pytest.FixtureRequest) -> Speaker:
    return speaker(request.param)


@pytest.fixture(params=["t5", "opt", "llama"])
def blip2(request: pytest.FixtureRequest) -> Speaker:
    return speaker(f"blip2_{request.param}")


def forward_of(one: Speaker, sample: Sample) -> Callable[[list[int]], Tensor]:
    """From what was said so far to the logits of the next token, by the whole model without a cache or padding."""
    model, adapter = one.model, one.adapter
    if isinstance(adapter, Blip2Adapter):
        inputs = dict(adapter.processor(images=sample.image, text=sample.question, return_tensors="pt"))
    else:
        ids = adapter.processor(sample.question, return_tensors="pt")["input_ids"]
        inputs = {"input_ids": ids[:, :-1] if isinstance(adapter, LlamaAdapter) else ids}
    inputs.pop("attention_mask", None)

    def next_logits(said: list[int]) -> Tensor:
        words = torch.tensor([said], dtype=torch.int64)
        if one.text.config.is_encoder_decoder:
            begun = torch.cat([torch.zeros(1, 1, dtype=torch.int64), words], 1)
            output = model(**inputs, decoder_input_ids=begun, use_cache=False)
        else:
            ids = torch.cat([inputs["input_ids"], words], 1)
            output = model(**{**inputs, "input_ids": ids}, use_cache=False)
        return output.logits[0, -1]

    return next_logits


@torch.no_grad()
def greedy_by_hand(one: Speaker, sample: Sample, count: int) -> tuple[int, ...]:
    next_logits, said = forward_of(one, sample), []
    for _ in range(count):
        said.append(int(next_logits(said).argmax()))
        if said[-1] in ends_of(one):
            return tuple(said[:-1])
    return tuple(said)


def ends_of(one: Speaker) -> list[int]:
    return [one.text.config.eos_token_id]


def set_ends(one: Speaker, *ends: int) -> None:
    """In both configurations, as a checkpoint has them."""
    for config in (one.text.config, one.text.generation_config):
        config.eos_token_id = list(ends)


def test_greedy_takes_the_likeliest_token_each_time(any_speaker: Speaker):
    found = any_speaker.tokens()
    assert found == [greedy_by_hand(any_speaker, sample, 7) for sample in any_speaker.samples]
    assert len(set(found)) >= 4


@pytest.mark.parametrize("generation", [GREEDY, BEAMS, replace(BEAMS, length_penalty=1.0, min_new_tokens=3)])
def test_a_batch_says_what_its_samples_say_alone(generation: Generation, any_speaker: Speaker):
    together = any_speaker.says(generation)
    assert together == [any_speaker.says(generation, [sample])[0] for sample in any_speaker.samples]
    assert together[::-1] == any_speaker.says(generation, any_speaker.samples[::-1])
    assert len({said.text for said in together}) >= 3


def test_beams_find_the_likeliest_of_all_texts():
    """With as many beams as words, no text of two tokens is overlooked."""
    one = speaker("t5")
    for penalty in (1.0, -1.0):
        words = len(one.model.shared.weight)
        (found,) = one.says(Generation(2, 0, words, penalty), one.samples[:1])
        next_logits, best = forward_of(one, one.samples[0]), (-math.inf, ())
        with torch.no_grad():
            first = next_logits([]).log_softmax(-1)
            best = max(best, (float(first[1]), ()))
            for word in set(range(words)) - {1}:
                second = first[word] + next_logits([word]).log_softmax(-1)
                likelier = int(second.argmax())
                said = (word,) if likelier == 1 else (word, likelier)
                best = max(best, (float(second.max()) / 2**penalty, said))
        assert found.tokens == best[1]


def test_a_text_ends_with_any_of_the_models_ends(any_speaker: Speaker):
    set_ends(any_speaker, NEVER)
    whole = any_speaker.tokens()
    ends = [whole[0][2], whole[1][0]]
    set_ends(any_speaker, *ends)
    for said, tokens in zip(any_speaker.says(GREEDY), whole, strict=True):
        cut = next((at for at, token in enumerate(tokens) if token in ends), None)
        assert said.tokens == tokens[:cut]
        assert said.ended is (cut is not None)
    silent = any_speaker.says(GREEDY)[1]
    assert silent == Said("", (), True)


def test_a_text_is_not_shorter_than_asked(any_speaker: Speaker):
    set_ends(any_speaker, NEVER)
    first = any_speaker.tokens()[0][0]
    set_ends(any_speaker, first)
    assert any_speaker.tokens()[0] == ()
    for count in (1, 3):
        said = any_speaker.tokens(replace(GREEDY, min_new_tokens=count))
        assert min(map(len, said)) >= count
        assert all(first not in tokens[:count] for tokens in said)


def test_text_is_without_special_tokens(any_speaker: Speaker):
    set_ends(any_speaker, NEVER)
    for said in any_speaker.says(GREEDY):
        assert said.text == " ".join(pico_t5.WORDS[token] for token in said.tokens if 2 < token < 64)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What transformers says of how it is used."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    yield found
    logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("generation", [GREEDY, BEAMS])
def test_a_checkpoints_own_settings_change_nothing(generation: Generation, any_speaker: Speaker, heard: list[str]):
    before = any_speaker.says(generation)
    own = any_speaker.text.generation_config
    own.update(do_sample=True, temperature=0.1, top_k=2, top_p=0.3, repetition_penalty=9.0, num_beams=3, max_length=3,
               no_repeat_ngram_size=1, forced_eos_token_id=1, length_penalty=5.0, bad_words_ids=[[5]])  # fmt: skip
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert any_speaker.says(generation) == before
    assert any_speaker.text.generation_config is own
    assert own.temperature == 0.1
    assert torch.equal(torch.get_rng_state(), state)
    assert heard == []


def test_without_a_graph_and_without_dropout(any_speaker: Speaker):
    before = any_speaker.says(GREEDY)
    any_speaker.model.train()
    assert any_speaker.says(GREEDY) == before
    assert all(parameter.grad is None for parameter in any_speaker.model.parameters())


def test_blocks_that_run_elsewhere_say_the_same(any_speaker: Speaker):
    """As with ``model.offload``, where each block is brought to a device while it runs."""
    adapter = any_speaker.adapter
    blocks = Anatomy.of(adapter.towers(any_speaker.model), adapter.layers).blocks
    before = any_speaker.says(BEAMS)
    with blocks_held(Placement(device=torch.device("cpu")), blocks):
        assert any_speaker.says(BEAMS) == before


def test_an_image_is_seen_once_in_a_batch(blip2: Speaker):
    pictures = [pico_blip2.picture(number) for number in (0, 1, 0)]  # equal, but not the same in memory
    samples = [replace(sample, image=picture) for sample, picture in zip(blip2.samples, pictures, strict=False)]
    seen: list[int] = []
    hook = blip2.model.vision_model.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    together = blip2.says(GREEDY, samples)
    assert seen == [2]
    hook.remove()
    assert together == [blip2.says(GREEDY, [sample])[0] for sample in samples]


def test_a_caption_is_said_to_no_question(blip2: Speaker):
    images = [replace(sample, question=None) for sample in blip2.samples]
    asked = [replace(sample, question="") for sample in blip2.samples]
    assert blip2.says(GREEDY, images) == blip2.says(GREEDY, asked)
    found = [said.tokens for said in blip2.says(GREEDY, images)]
    assert found == [greedy_by_hand(blip2, sample, 7) for sample in asked]
    assert len(set(found)) >= 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_a_text_is_what_the_model_says_itself(dtype: torch.dtype, blip2: Speaker):
    """The Q-Former stays in float32, as transformers keeps it."""
    for name, parameter in blip2.model.named_parameters():
        if not name.startswith(("qformer", "query_tokens")):
            parameter.data = parameter.data.to(dtype)
    sample = blip2.samples[0]
    inputs = blip2.adapter.processor(images=sample.image, text=sample.question, return_tensors="pt")
    theirs = blip2.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()
    (found,) = blip2.says(Generation(4, 0), [sample])
    assert tuple(theirs[-4:]) == found.tokens


def test_tokens_of_an_answer_are_those_it_is_taught_by(blip2: Speaker):
    for sample in blip2.samples:
        labels = blip2.adapter.collate(blip2.model, [sample])["labels"][0]
        taught = tuple(labels[labels != -100].tolist()[:-1])  # without what ends it
        assert blip2.adapter.tokens_of(blip2.model, sample.answers[0]) == taught


def test_tokens_of_an_answer_without_an_image():
    assert pico_t5.adapter().tokens_of(pico_t5.build(), "a w1") == (6, 11)
    assert llama_adapter().tokens_of(pico_decoder.build(), "a w1") == (6, 11)


def test_a_blank_before_an_answer_belongs_to_it():
    """As in a tokenizer of bytes; one that begins a text with what ends another keeps its beginning."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "</s>", ":", "Ġa", "a"])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    made = LlamaAdapter()
    made.processor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert made.tokens_of(pico_decoder.build(), "a") == (3,)


def test_what_can_be_asked_for_texts():
    assert all(offers(adapter, Generates) for adapter in (Blip2Adapter(), T5Adapter(), LlamaAdapter()))
    assert not any(offers(adapter, Generates) for adapter in (ClipAdapter(), Blip2RetrievalAdapter()))


def test_a_model_without_a_place_for_images_is_refused(blip2: Speaker):
    assert blip2.adapter.refuses(blip2.model, Generates) is None
    blip2.model.config.image_token_index = None
    assert "has no image_token_index" in blip2.adapter.refuses(blip2.model, Generates)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_without_a_question_there_is_nothing_to_go_on_with(name: str):
    one = speaker(name)
    with pytest.raises(DataError, match="sample 1 of a batch has no question"):
        one.says(GREEDY, [one.samples[0], Sample(text="a")])
    with pytest.raises(DataError, match="at least one sample"):
        one.adapter.generate(one.model, [], GREEDY)
    one.adapter.processor = None
    with pytest.raises(DataError, match="needs a tokenizer to read"):
        one.says(GREEDY)


@pytest.mark.parametrize(("name", "fits"), [("blip2_opt", 54), ("llama", 59)])
def test_a_text_that_would_be_longer_than_the_model_takes_is_refused(name: str, fits: int):
    """64 positions; four are the image's, and one is a token that the tokenizer begins with."""
    one = speaker(name)
    sample = replace(one.samples[0], question="w1 w2 w3 w4 w5")
    (said,) = one.says(Generation(fits, fits), [sample])
    assert len(said.tokens) == fits
    more, short = Generation(fits + 1, 0), replace(sample, question="w1", id=3)
    said = rf"\('w1 w2 w3 w4 w5'\) and max_new_tokens: {fits + 1} are more than the 64 tokens"
    with pytest.raises(DataError, match=said):
        one.says(more, [short, sample])
    with pytest.raises(DataError, match=r"a prompt of \d+ tokens \(17: 'w1 w2 w3 w4 w5'\) and max_new_tokens"):
        one.says(more, [short, replace(sample, id=17)])
