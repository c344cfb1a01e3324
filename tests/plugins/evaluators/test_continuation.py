from collections.abc import Callable
from math import sqrt
from typing import Any

import pico_t5
import pytest
import torch
from several import several
from speaking import Given

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.plugins.evaluators.continuation import Continuation


def window(length: int, seed: int) -> Sample:
    return Sample(tokens=torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(seed)))


def ending_likelihood(model: Any, beginning: torch.Tensor, ending: torch.Tensor) -> float:
    """Σ log p of each token of the ending after all before it, in float64."""
    tokens = torch.cat([beginning, ending])
    with torch.no_grad():
        logs = model(input_ids=tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
    places = range(len(beginning) - 1, len(tokens) - 1)
    return sum(float(logs[place, tokens[place + 1]]) for place in places)


def test_by_the_likelihood_of_each_ending(pico_llama: Callable[..., Any]):
    model, samples = pico_llama(), tuple(window(12 + n % 3, n) for n in range(24))
    found = Continuation(Given(samples), ending=5, choices=3)(model, LlamaAdapter(), ignore)["continuation"]
    right = 0
    for number, sample in enumerate(samples):
        endings = [samples[(number + step) % 24].tokens[-5:] for step in range(3)]  # type: ignore[index]
        scores = [ending_likelihood(model, sample.tokens[:-5], ending) for ending in endings]  # type: ignore[index]
        right += scores[0] == max(scores)
    assert 0 < right < 24
    assert (found.value, found.n, found.unit) == (right / 24, 24, "windows")
    assert found.standard_error == pytest.approx(sqrt(found.value * (1 - found.value) / 23))
    assert found.larger_is_better


def test_a_model_that_knows_the_text_is_right(pico_llama: Callable[..., Any]):
    """The word after word w is w + 1: a model whose head says so finds each ending, and any other model guesses."""
    model = pico_llama()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.randn(64, model.config.hidden_size))
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, 0) * 9)
    samples = tuple(Sample(tokens=(torch.arange(10) + 7 * n) % 64) for n in range(6))
    assert Continuation(Given(samples), ending=3)(model, LlamaAdapter(), ignore)["continuation"].value == 1


def test_an_ending_that_is_the_right_one_is_passed_over(pico_llama: Callable[..., Any]):
    same = torch.cat([window(4, 9).tokens, window(4, 0).tokens[:3]])  # type: ignore[list-item,index]
    samples = (Sample(tokens=torch.arange(4, 11)), Sample(tokens=same), Sample(tokens=same + 0))
    question = next(iter(Continuation(Given(()), ending=3, choices=2)._questions(list(samples[1:] + samples[:1]))))
    assert [one.tokens.tolist() for one in question if one.tokens is not None] == [
        same.tolist(),
        [*same[:4].tolist(), 8, 9, 10],
    ]
    with pytest.raises(DataError, match=r"only 1 window\(s\) end otherwise than window 1, and 2 are needed"):
        Continuation(Given(samples), ending=3, choices=3)(pico_llama(), LlamaAdapter(), ignore)


def test_an_encoder_reads_the_beginning_and_the_decoder_chooses():
    model, samples = pico_t5.build(), tuple(window(20, n) for n in range(5))
    found = Continuation(Given(samples), ending=6, choices=2)(model, T5Adapter(), ignore)["continuation"]
    right = 0
    for number, sample in enumerate(samples):
        scores = []
        for ending in (sample.tokens, samples[(number + 1) % 5].tokens):
            tokens = torch.cat([sample.tokens[:-6], ending[-6:]])  # type: ignore[index]
            before = torch.cat([torch.zeros(1, dtype=torch.int64), tokens[10:-1]])
            with torch.no_grad():
                asked = {"input_ids": tokens[None, :10], "decoder_input_ids": before[None], "use_cache": False}
                logs = model(**asked).logits[0].double().log_softmax(-1)
            scores.append(sum(float(logs[place - 10, tokens[place]]) for place in range(14, 20)))
        right += scores[0] > scores[1]
    assert found.value == right / 5
    with pytest.raises(DataError, match="of window 0 the model predicts 10 tokens and reads the others, so that an"):
        Continuation(Given(samples), ending=11, choices=2)(model, T5Adapter(), ignore)


def test_a_model_that_is_asked_for_some_of_the_ending_is_refused(pico_llama: Callable[..., Any]):
    class Masked(LlamaAdapter):
        def collate(self, model: Any, samples: Any) -> Any:
            batch = super().collate(model, samples)
            return {**batch, "labels": batch["input_ids"].masked_fill(torch.arange(12) % 3 > 0, -100)}

        def loss(self, model: Any, batch: Any) -> Any:
            return super().loss(model, {name: batch[name] for name in ("input_ids", "attention_mask")})

        def predicted(self, model: Any, batch: Any) -> Any:
            return batch["labels"] != -100

    samples = tuple(window(12, n) for n in range(3))
    said = "of window 0 the model is not asked for all of the last 4 tokens, as one that guesses masked words is not"
    with pytest.raises(DataError, match=said):
        Continuation(Given(samples), ending=4, choices=2)(pico_llama(), Masked(), ignore)


def test_two_processes_measure_what_one_does(pico_llama: Callable[..., Any], tmp_path: Any):
    samples = tuple(window(12, n) for n in range(7))
    evaluator, model = Continuation(Given(samples), ending=5, choices=2), pico_llama()
    alone = evaluator(model, LlamaAdapter(), ignore)

    def together(ranks: Any) -> None:
        assert evaluator.dealt(model, LlamaAdapter(), ignore, ranks) == alone

    assert several(2, together, tmp_path) == [(0, "")] * 2


def test_is_an_evaluator():
    assert isinstance(Continuation(Given(())), Evaluator)


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        ((), r"its data holds 0 window\(s\), of which 4 endings cannot be taken"),
        ((Sample(text="x"),), "sample 0 of its data has no tokens; a dataset such as text gives them"),
        ((window(16, 0),), "sample 0 of its data has no beginning before its 16 tokens of ending"),
    ],
)
def test_data_it_cannot_use(samples: tuple[Sample, ...], problem: str, pico_llama: Callable[..., Any]):
    with pytest.raises(DataError, match=problem):
        Continuation(Given(samples))(pico_llama(), LlamaAdapter(), ignore)


@pytest.mark.parametrize(("keys", "problem"), [({"choices": 1}, "choices is 1; at least 2"), ({"ending": 0}, "ending")])
def test_parameters_it_refuses(keys: dict[str, int], problem: str):
    with pytest.raises(EcoflapError, match=problem):
        Continuation(Given(()), **keys)


def test_a_broken_model_is_named(pico_llama: Callable[..., Any]):
    model = pico_llama()
    model.lm_head.weight.data[:, 0] = torch.nan
    with pytest.raises(ModelError, match="continuation: the loss of batch 0 is nan"):
        Continuation(Given(tuple(window(20, n) for n in range(4))))(model, LlamaAdapter(), ignore)
