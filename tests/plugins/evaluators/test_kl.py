"""``kl`` on pico models, held against log-softmax and sums in float64 of logits from the models' own forwards."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pico_t5
import pytest
import torch
from labelled import labelled
from plan_contexts import context
from speaking import Given
from table import ALL_ROWS, ROWS
from torch import Tensor, nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.protocols import ComparingEvaluator, ignore
from ecoflap.core.contracts.records import Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.plugins.evaluators.kl import Kl

LENGTHS = (10, 30, 21)


def windows(*lengths: int) -> list[Sample]:
    return [
        Sample(tokens=torch.randint(64, (length,), generator=torch.Generator().manual_seed(length)))
        for length in lengths
    ]


def hurt(model: nn.Module, seed: int = 1) -> None:
    """Take a third of every matrix away, as a pruner would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) > 1 / 3


def measured(evaluator: Kl, model: nn.Module, adapter: Any) -> tuple[Measure, dict[str, Tensor]]:
    """Remember the model, hurt it, and measure it; tensors are handed over as a run does, apart from the model."""
    with torch.no_grad():
        dense = {name: one.clone() for name, one in evaluator.remember(model, adapter, ignore).items()}
        hurt(model)
        return evaluator(model, adapter, ignore, dense)["kl"], dense


def rows_of(dense: Tensor, pruned: Tensor) -> list[float]:
    """Write Σ p (log p − log q) out, in float64, for each row of logits."""
    found = []
    for p_logits, q_logits in zip(dense.double(), pruned.double(), strict=True):
        p, q = p_logits.exp() / p_logits.exp().sum(), q_logits.exp() / q_logits.exp().sum()
        found.append(math.fsum((p * (p / q).log()).tolist()))
    return found


def weighted(rows: Sequence[Sequence[float]], sizes: Sequence[int]) -> tuple[float, float]:
    """Give the mean of the rows' means by size, and √(k/(k − 1)·Σ(n/N·(m − mean))²)."""
    means = [sum(row) / len(row) for row in rows]
    mean = sum(n * m for n, m in zip(sizes, means, strict=True)) / sum(sizes)
    squares = sum((n / sum(sizes) * (m - mean)) ** 2 for n, m in zip(sizes, means, strict=True))
    return mean, math.sqrt(len(rows) / (len(rows) - 1) * squares)


def llama_logits(model: Any, samples: Sequence[Sample]) -> list[Tensor]:
    """Give each window's logits by itself, without padding."""
    with torch.no_grad():
        return [model(input_ids=one.tokens[None], use_cache=False).logits[0, :-1] for one in samples]  # type: ignore[index]


def test_is_an_evaluator_that_compares():
    assert isinstance(Kl(Given([])), ComparingEvaluator)


def test_at_all_positions_by_hand(pico_llama: Any):
    model, samples = pico_llama(), windows(*LENGTHS)
    before = llama_logits(model, samples)
    found, _ = measured(Kl(Given(samples), positions=None), model, LlamaAdapter())
    rows = [rows_of(*pair) for pair in zip(before, llama_logits(model, samples), strict=True)]
    value, error = weighted(rows, [9, 29, 20])
    assert value > 0.01
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.standard_error == pytest.approx(error, rel=1e-5)
    assert (found.n, found.unit, found.larger_is_better) == (58, "positions", False)


def test_a_padded_batch_is_looked_at_where_there_is_text(pico_llama: Any):
    model, samples = pico_llama(), windows(*LENGTHS)
    before = llama_logits(model, samples)
    found, dense = measured(Kl(Given(samples), positions=None, batch_size=2), model, LlamaAdapter())
    rows = [rows_of(*pair) for pair in zip(before, llama_logits(model, samples), strict=True)]
    value, error = weighted([rows[0] + rows[1], rows[2]], [38, 20])
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.standard_error == pytest.approx(error, rel=1e-3)
    assert [len(dense[f"targets {number}"]) for number in range(2)] == [38, 20]


@pytest.mark.parametrize(
    ("positions", "places"),
    [
        (1, [[4], [14], [10]]),
        (4, [[1, 3, 5, 7], [3, 10, 18, 25], [2, 7, 12, 17]]),
        (9, [[0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 4, 8, 11, 14, 17, 20, 24, 27], [1, 3, 5, 7, 10, 12, 14, 16, 18]]),
        (28, [[*range(9)], [*range(14), *range(15, 29)], [*range(20)]]),
    ],
)
def test_positions_are_spread_over_each_sample_which_counts_by_its_length(
    pico_llama: Any, positions: int, places: list[list[int]]
):
    model, samples = pico_llama(), windows(*LENGTHS)
    before = llama_logits(model, samples)
    found, dense = measured(Kl(Given(samples), positions), model, LlamaAdapter())
    rows = [rows_of(*pair) for pair in zip(before, llama_logits(model, samples), strict=True)]
    looked_at = [[row[place] for place in some] for row, some in zip(rows, places, strict=True)]
    value, error = weighted(looked_at, [9, 29, 20])
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.standard_error == pytest.approx(error, rel=1e-5)
    assert found.n == sum(map(len, places))
    for number, (logits, some) in enumerate(zip(before, places, strict=True)):
        kept = dense[f"log-probabilities {number}"]
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept.double(), logits[some].double().log_softmax(-1), rtol=1e-5, atol=1e-5)


def test_logits_that_a_loss_makes_piece_by_piece_are_put_together(pico_llama: Any, monkeypatch: pytest.MonkeyPatch):
    samples = windows(*LENGTHS)
    at_once, _ = measured(Kl(Given(samples), 5), pico_llama(), LlamaAdapter())
    monkeypatch.setattr("ecoflap.adapters.shared.losses.LOGITS_BYTES", 4 * 64 * 4)  # four rows a piece
    in_pieces, _ = measured(Kl(Given(samples), 5), pico_llama(), LlamaAdapter())
    assert in_pieces.value == pytest.approx(at_once.value, rel=1e-6)


def test_of_an_encoder_with_a_decoder_by_hand():
    """Only the decoder's half of a window is said."""
    model, samples = pico_t5.build(), windows(10, 15, 21)

    def logits() -> list[Tensor]:
        found = []
        for one in samples:
            assert one.tokens is not None
            middle = len(one.tokens) // 2
            said = torch.cat([torch.zeros(1, dtype=torch.int64), one.tokens[middle:-1]])[None]
            with torch.no_grad():
                found.append(model(input_ids=one.tokens[None, :middle], decoder_input_ids=said).logits[0])
        return found

    before = logits()
    found, _ = measured(Kl(Given(samples), positions=None), model, T5Adapter())
    rows = [rows_of(*pair) for pair in zip(before, logits(), strict=True)]
    assert found.n == 5 + 8 + 11
    assert found.value == pytest.approx(weighted(rows, [5, 8, 11])[0], rel=1e-4)


@pytest.mark.parametrize(
    "row", [name for name in ("blip2_opt", "llava", "qwen2_vl", "instructblip") if name in ALL_ROWS]
)
def test_of_images_and_texts_by_the_models_own_forward(row: str):
    family = ALL_ROWS[row]
    model, adapter, samples = family.build(), family.adapter(), family.samples(3)
    adapter.towers(model)

    def logits() -> list[Tensor]:
        found = []
        for one in samples:
            inputs = dict(adapter.own_inputs(model, adapter.collate(model, [one])))  # type: ignore[arg-type]
            with torch.no_grad():
                output = model(**inputs)
            real = inputs["labels"][0, 1:] != -100
            found.append(output.logits[0, -len(real) - 1 : -1][real])
        return found

    before = logits()
    found, _ = measured(Kl(Given(samples), positions=None), model, adapter)
    sizes = [len(one) for one in before]
    assert found.n == sum(sizes) > 3
    rows = [rows_of(*pair) for pair in zip(before, logits(), strict=True)]
    assert found.value == pytest.approx(weighted(rows, sizes)[0], rel=1e-4)


@pytest.mark.skipif("vit_classifier" not in ROWS, reason="this environment has no ViT")
def test_of_classes_where_images_are_labelled():
    family = ROWS["vit_classifier"]
    model, adapter, samples = family.build(), family.adapter(), family.samples(4)
    adapter.towers(model)
    with torch.no_grad():
        before = adapter.logits(model, samples)  # type: ignore[attr-defined]
        found, _ = measured(Kl(Given(samples), batch_size=2), model, adapter)
        after = adapter.logits(model, samples)  # type: ignore[attr-defined]
    assert found.n == 4
    assert found.value == pytest.approx(sum(rows_of(before, after)) / 4, rel=1e-4)


def test_of_the_same_model_it_is_nothing_and_of_one_sample_its_error_is_unknown(pico_llama: Any):
    model, evaluator = pico_llama(), Kl(Given(windows(12)))
    found = evaluator(model, LlamaAdapter(), ignore, evaluator.remember(model, LlamaAdapter(), ignore))["kl"]
    assert abs(found.value) < 1e-6
    assert found.standard_error == math.inf


def test_builds_no_graph(pico_llama: Any):
    model, evaluator = pico_llama(), Kl(Given(windows(12)))
    dense = evaluator.remember(model, LlamaAdapter(), ignore)
    assert not any(one.requires_grad for one in dense.values())
    evaluator(model, LlamaAdapter(), ignore, dense)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_data_than_the_dense_model_was_asked_about_are_refused(pico_llama: Any):
    model, adapter = pico_llama(), LlamaAdapter()
    dense = Kl(Given(windows(10, 12))).remember(model, adapter, ignore)
    for given, told in (
        (windows(10, 13), "batch 1 of its data is not the one that the dense model was asked about"),
        (windows(10, 12, 14), "batch 2 of its data is not the one"),
        (windows(10), "its data end before batch 1, and the dense model was asked about 2"),
    ):
        with pytest.raises(DataError, match=f"kl: {told}"):
            Kl(Given(given))(model, adapter, ignore, dense)
    with pytest.raises(DataError, match="kl: its data holds no sample"):
        Kl(Given([])).remember(model, adapter, ignore)


def test_a_broken_model_is_named(pico_llama: Any):
    model, adapter, evaluator = pico_llama(), LlamaAdapter(), Kl(Given(windows(10)))
    dense = evaluator.remember(model, adapter, ignore)
    weight = model.lm_head.weight.data
    known = weight[63].clone()
    weight[63] = math.nan
    with pytest.raises(ModelError, match="kl: the loss of batch 0 is nan"):
        evaluator(model, adapter, ignore, dense)
    weight[63] = known
    broken = {name: one * math.inf if one.is_floating_point() else one for name, one in dense.items()}
    with pytest.raises(ModelError, match="kl: the divergence of batch 0 is not finite"):
        evaluator(model, adapter, ignore, broken)


def test_outside_a_run_it_wants_what_the_dense_model_said(pico_llama: Any):
    with pytest.raises(
        EcoflapError, match=r"kl compares a model with the dense one: give as dense what its remember\("
    ):
        Kl(Given(windows(10)))(pico_llama(), LlamaAdapter(), ignore)


@pytest.mark.parametrize("row", [name for name in ("clip", "siglip", "blip_retrieval", "open_clip") if name in ROWS])
def test_a_model_that_compares_images_with_texts_is_refused_before_and_when_it_is_asked(row: str):
    family = ROWS[row]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    (problem,) = Kl(Given([])).problems(context(adapter=adapter, model=model))
    assert problem.startswith(f"kl looks at logits over words or classes, and {type(adapter).__name__} compares images")
    assert "{use: agreement, of: {use: zero_shot, data: …}}" in problem
    with pytest.raises(ModelError, match="its loss is over the pairs of a batch"):
        Kl(Given(family.samples(2)), batch_size=2).remember(model, adapter, ignore)


@pytest.mark.parametrize("row", [name for name in ("vit", "clip_vision") if name in ROWS])
def test_a_vision_tower_without_classes_is_refused(row: str):
    family = ROWS[row]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    (problem,) = Kl(Given([])).problems(context(adapter=adapter, model=model))
    assert f"{type(adapter).__name__} has none here: " in problem


@pytest.mark.skipif("vit_classifier" not in ROWS, reason="this environment has no ViT")
def test_images_without_labels_are_refused_when_the_dense_model_is_asked():
    family = ROWS["vit_classifier"]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    assert list(Kl(Given([])).problems(context(adapter=adapter, model=model))) == []
    with pytest.raises(ModelError, match=r"no cross entropy of logits here.* where the data are labelled"):
        Kl(Given(labelled([None]))).remember(model, adapter, ignore)


@dataclass(frozen=True)
class Windows:
    """A dataset of which it is known how many windows it has, and how long they are."""

    samples: int = 5

    def __call__(self, adapter: Any, model: Any, note: Any) -> Iterator[Sample]:
        yield from windows(*[16] * self.samples)

    def tokens_per_sample(self, longest: int | None) -> int:
        return 16


def test_what_it_takes_on_the_disk(pico_llama: Any):
    model, adapter = pico_llama(), LlamaAdapter()
    here = context(adapter=adapter, model=model)
    assert Kl(Windows(), 4).remembered_bytes(here) == 5 * 4 * 64 * 4
    dense = Kl(Windows(), 4).remember(model, adapter, ignore)
    assert sum(one.nbytes for one in dense.values() if one.is_floating_point()) == 5 * 4 * 64 * 4
    assert Kl(Windows()).remembered_bytes(here) == Kl(Windows(), None).remembered_bytes(here) == 5 * 16 * 64 * 4
    assert Kl(Windows()).remembered_bytes(context(adapter=adapter, model=model.model)) is None
    assert Kl(Given([])).remembered_bytes(here) is None


@pytest.mark.parametrize("wrong", [{"positions": 0}, {"batch_size": 0}])
def test_settings_out_of_range(wrong: dict[str, int]):
    with pytest.raises(EcoflapError, match=f"{next(iter(wrong))} is 0; at least 1 is needed"):
        Kl(Given([]), **wrong)
