import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pico_t5
import pytest
import torch

from ecoflap.adapters.generic.encoder import EncoderAdapter
from ecoflap.adapters.generic.seq2seq_lm import Seq2SeqLMAdapter
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.plugins.evaluators.perplexity import Perplexity, measure


@dataclass(frozen=True)
class Windows:
    """Hands out what it was given."""

    samples: tuple[Sample, ...]

    def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
        yield from self.samples


def sample(length: int, seed: int) -> Sample:
    return Sample(tokens=torch.randint(64, (length,), generator=torch.Generator().manual_seed(seed)))


def test_is_an_evaluator():
    assert isinstance(Perplexity(Windows(())), Evaluator)


def test_a_sample_without_tokens_is_told_beforehand():
    perplexity = Perplexity(Windows(()))
    assert perplexity.lacks(Sample(text="w1 w2")) == "tokens; a dataset such as text gives them"
    assert perplexity.lacks(sample(3, 0)) is None


def test_by_hand(pico_llama: Callable[..., Any]):
    model, samples = pico_llama(), tuple(sample(length, length) for length in (10, 30, 21))
    found = Perplexity(Windows(samples))(model, LlamaAdapter(), ignore)["perplexity"]
    terms: list[float] = []
    for window in samples:
        assert window.tokens is not None
        with torch.no_grad():
            logs = model(input_ids=window.tokens[None], use_cache=False).logits[0].double().log_softmax(-1)
        terms += [-float(logs[i, token]) for i, token in enumerate(window.tokens[1:].tolist())]
    assert found.n == len(terms) == 58
    assert found.value == pytest.approx(math.exp(sum(terms) / 58), rel=1e-6)
    assert (found.unit, found.larger_is_better) == ("tokens", False)


def test_of_an_encoder_with_a_decoder_by_hand():
    """Only the decoder's half of a window is predicted."""
    model, samples = pico_t5.build(), tuple(sample(length, length).tokens for length in (10, 15, 21))
    windows = tuple(Sample(tokens=tokens) for tokens in samples)
    found = Perplexity(Windows(windows))(model, T5Adapter(), ignore)["perplexity"]
    terms: list[float] = []
    for window in samples:
        assert window is not None
        middle = len(window) // 2
        before = torch.cat([torch.zeros(1, dtype=torch.int64), window[middle:-1]])
        with torch.no_grad():
            logits = model(input_ids=window[None, :middle], decoder_input_ids=before[None], use_cache=False).logits[0]
        terms += [-float(logits.double().log_softmax(-1)[i, token]) for i, token in enumerate(window[middle:].tolist())]
    assert found.n == len(terms) == 5 + 8 + 11
    assert found.value == pytest.approx(math.exp(sum(terms) / len(terms)), rel=1e-6)


@pytest.mark.parametrize("adapter", [T5Adapter(), Seq2SeqLMAdapter(), EncoderAdapter()])
def test_of_those_that_are_asked_for_some_tokens_the_labels_say_which(adapter: Any):
    labels = torch.tensor([[4, -100, 6], [7, 8, -100]])
    assert adapter.predicted(torch.nn.Identity(), {"labels": labels}).tolist() == [
        [True, False, True],
        [True, True, False],
    ]


class Labelled(LlamaAdapter):
    """A causal adapter whose batches have labels as transformers takes them, which are shifted in the forward."""

    def collate(self, model: Any, samples: Any) -> Any:
        batch = super().collate(model, samples)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def test_labels_in_a_batch_change_no_count(pico_llama: Callable[..., Any]):
    model, samples = pico_llama(), tuple(sample(length, length) for length in (10, 30, 21))
    found, expected = (
        Perplexity(Windows(samples))(model, adapter, ignore)["perplexity"] for adapter in (Labelled(), LlamaAdapter())
    )
    assert found == expected
    assert found.n == 58


class Half(LlamaAdapter):
    """Says that the loss is over the second half."""

    def predicted(self, model: Any, batch: Any) -> Any:
        ids = batch["input_ids"]
        return (torch.arange(ids.shape[1]) >= ids.shape[1] // 2).expand(ids.shape)


def test_what_is_predicted_is_what_the_adapter_says(pico_llama: Callable[..., Any]):
    data = Windows(tuple(sample(length, length) for length in (10, 30, 21)))
    assert Perplexity(data)(pico_llama(), Half(), ignore)["perplexity"].n == 5 + 15 + 11

    class Counts(LlamaAdapter):
        def predicted(self, model: Any, batch: Any) -> Any:
            return 9

    with pytest.raises(PartError, match=r"adapter Counts, asked for its predicted, answered 9, and is to answer Bool"):
        Perplexity(data)(pico_llama(), Counts(), ignore)


def test_standard_error_of_equal_windows():
    found = measure([1.0, 2.0, 3.0, 4.0], [9, 9, 9, 9])
    error = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).std() / 2
    assert found.value == pytest.approx(math.exp(2.5))
    assert found.standard_error == pytest.approx(float(math.exp(2.5) * error))


def test_standard_error_of_one_window_is_unknown():
    assert measure([1.0], [9]).standard_error == math.inf


def test_a_loss_beyond_all_floats_is_infinitely_perplexed():
    assert measure([709.0, 709.0], [9, 9]).value == pytest.approx(math.exp(709.0))
    assert measure([800.0], [9]).value == math.inf


def test_builds_no_graph(pico_llama: Callable[..., Any]):
    model = pico_llama()
    Perplexity(Windows((sample(10, 0),)))(model, LlamaAdapter(), ignore)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_the_window_with_a_broken_loss(pico_llama: Callable[..., Any]):
    model = pico_llama()
    model.lm_head.weight.data[:, 0] = math.nan
    with pytest.raises(ModelError, match="perplexity: the loss of batch 0 is nan"):
        Perplexity(Windows((sample(10, 0),)))(model, LlamaAdapter(), ignore)


@pytest.mark.parametrize(
    ("samples", "problem"), [((), "holds no window"), ((Sample(text="x"),), "sample 0 of its data holds no tokens")]
)
def test_data_it_cannot_use(samples: tuple[Sample, ...], problem: str, pico_llama: Callable[..., Any]):
    with pytest.raises(DataError, match=problem):
        Perplexity(Windows(samples))(pico_llama(), LlamaAdapter(), ignore)
