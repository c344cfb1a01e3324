"""``agreement`` on pico models, counted by hand: likeliest words, and the answers of other evaluators."""

import math
from statistics import stdev
from typing import Any

import pico_t5
import pytest
import torch
from labelled import Given as Labelled
from labelled import labelled
from plan_contexts import context
from speaking import Given, Parrot
from table import ALL_ROWS, ROWS
from torch import Tensor, nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ComparingEvaluator, Evaluator, ignore
from ecoflap.core.contracts.records import Answered, Measure, Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.plugins.evaluators.agreement import Agreement
from ecoflap.plugins.evaluators.classification import Classification
from ecoflap.plugins.evaluators.loss import Loss
from ecoflap.plugins.evaluators.vqa import Vqa
from ecoflap.plugins.evaluators.zero_shot import ZeroShot


def windows(*lengths: int) -> list[Sample]:
    return [
        Sample(tokens=torch.randint(64, (length,), generator=torch.Generator().manual_seed(length)))
        for length in lengths
    ]


def hurt(model: nn.Module, share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= torch.rand(parameter.shape, generator=generator) > share


def measured(evaluator: Agreement, model: nn.Module, adapter: Any, share: float = 0.1) -> Measure:
    with torch.no_grad():
        dense = {name: one.clone() for name, one in evaluator.remember(model, adapter, ignore).items()}
        hurt(model, share)
        return evaluator(model, adapter, ignore, dense)["agreement" if evaluator.of is None else "agreement of answers"]


def first_largest(row: Tensor) -> int:
    values = row.tolist()
    return values.index(max(values))


def test_is_an_evaluator_that_compares():
    assert isinstance(Agreement(Given([])), ComparingEvaluator)


@pytest.mark.parametrize("size", [1, 2])
def test_of_likeliest_words_by_hand(pico_llama: Any, size: int):
    model, samples = pico_llama(), windows(10, 30, 21)

    def said() -> list[list[int]]:
        with torch.no_grad():
            logits = [model(input_ids=one.tokens[None], use_cache=False).logits[0, :-1] for one in samples]  # type: ignore[index]
        return [[first_largest(row) for row in rows] for rows in logits]

    before = said()
    found = measured(Agreement(Given(samples), batch_size=size), model, LlamaAdapter())
    same = [[one == other for one, other in zip(*pair, strict=True)] for pair in zip(before, said(), strict=True)]
    assert 0 < sum(map(sum, same)) < 58
    assert found.value == pytest.approx(sum(map(sum, same)) / 58)
    assert (found.n, found.unit, found.larger_is_better) == (58, "positions", True)
    batched = same if size == 1 else [same[0] + same[1], same[2]]
    terms = [(sum(one) - len(one) * found.value) / 58 for one in batched]
    count = len(batched)
    assert found.standard_error == pytest.approx(math.sqrt(count / (count - 1) * sum(term**2 for term in terms)))


@pytest.mark.parametrize(
    "row", [name for name in ("t5_untied_gated", "blip_vqa", "blip2_opt", "llava") if name in ALL_ROWS]
)
def test_of_the_same_model_it_is_all_and_of_another_not(row: str):
    family = ALL_ROWS[row]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    samples = Given(family.samples(3))
    assert measured(Agreement(samples), model, adapter, share=0).value == 1
    assert measured(Agreement(samples), model, adapter, share=0.5).value < 1


def test_of_words_that_are_as_likely_the_first_counts(pico_llama: Any):
    model, evaluator = pico_llama(), Agreement(Given(windows(9)))
    model.lm_head.weight.data.zero_()
    dense = evaluator.remember(model, LlamaAdapter(), ignore)
    assert dense["likeliest 0"].tolist() == [0] * 8


def test_other_data_than_the_dense_model_was_asked_about_are_refused(pico_llama: Any):
    model, adapter = pico_llama(), LlamaAdapter()
    dense = Agreement(Given(windows(10, 12))).remember(model, adapter, ignore)
    with pytest.raises(DataError, match="agreement: batch 0 of its data is not the one that the dense model was asked"):
        Agreement(Given(windows(11, 12)))(model, adapter, ignore, dense)
    with pytest.raises(
        DataError, match="agreement: its data end before batch 1, and the dense model was asked about 2"
    ):
        Agreement(Given(windows(10)))(model, adapter, ignore, dense)


def asked(*questions: str) -> Given:
    return Given([Sample(question=one, answers=("red",) * 10, image_id=one[0]) for one in questions])


def test_of_answers_by_hand():
    """In the wording of VQA's scorer, right or wrong, those on one image together."""
    dense = Parrot({"a1": "red", "a2": "Two.", "b1": "a blue car", "c1": "", "d1": "no"})
    pruned = Parrot({"a1": "green", "a2": "2", "b1": "blue car…", "c1": "", "d1": "yes"})
    evaluator = Agreement(of=Vqa(asked("a1", "a2", "b1", "c1", "d1"), prompt="{}", batch_size=2))
    found = evaluator(nn.Identity(), pruned, ignore, evaluator.remember(nn.Identity(), dense, ignore))[
        "agreement of answers"
    ]
    assert (found.value, found.n, found.unit, found.larger_is_better) == (3 / 5, 5, "answers", True)
    of_images = [1 - 2 * 0.6, 0.4, 0.4, -0.6]
    assert found.standard_error == pytest.approx(math.sqrt(4 / 3 * sum(one**2 for one in of_images)) / 5)


def test_another_number_of_answers_is_refused():
    says = Parrot({"a": "red", "b": "blue"})
    dense = Agreement(of=Vqa(asked("a", "b"), prompt="{}")).remember(nn.Identity(), says, ignore)
    with pytest.raises(DataError, match="agreement: there are 1 answers, and the dense model gave 2"):
        Agreement(of=Vqa(asked("a"), prompt="{}"))(nn.Identity(), says, ignore, dense)


@pytest.mark.skipif("vit_classifier" not in ROWS, reason="this environment has no ViT")
def test_of_classes_by_hand():
    family = ROWS["vit_classifier"]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    samples = labelled([0, 1, 2, 3, 4, 0])

    def classes() -> list[int]:
        with torch.no_grad():
            return [first_largest(row) for row in adapter.logits(model, samples)]  # type: ignore[attr-defined]

    before = classes()
    model.classifier.bias.data[before[0]] = -100.0
    after = classes()
    model.classifier.bias.data[before[0]] = 0.0
    evaluator = Agreement(of=Classification(Labelled(samples), batch_size=4))
    dense = evaluator.remember(model, adapter, ignore)
    model.classifier.bias.data[before[0]] = -100.0
    found = evaluator(model, adapter, ignore, dense)["agreement of answers"]
    same = [float(one == other) for one, other in zip(before, after, strict=True)]
    assert found.value == pytest.approx(sum(same) / 6)
    assert found.standard_error == pytest.approx(stdev(same) / math.sqrt(6))


@pytest.mark.skipif("clip" not in ROWS, reason="this environment has no CLIP")
def test_of_names_of_classes_on_a_model_that_compares():
    family = ROWS["clip"]
    model, adapter = family.build(), family.adapter()
    adapter.towers(model)
    samples = labelled([0, 1, 2, 0, 1, 2, 0, 1])
    inner = ZeroShot(Labelled(samples), classes=("w1", "w2", "w3"), batch_size=3)

    def classes() -> list[int]:
        with torch.no_grad():
            images, texts = adapter.embed_images(model, samples), inner.classifier(model, adapter)  # type: ignore[attr-defined]
            return [first_largest(row) for row in images @ texts.T]

    before = classes()
    found = measured(Agreement(of=inner), model, adapter, share=0.6)
    same = [one == other for one, other in zip(before, classes(), strict=True)]
    assert found.value == pytest.approx(sum(same) / 8)
    assert found.n == 8


class Ends:
    """An evaluator of somebody else with answers of its own, which need not be text."""

    def __call__(self, model: Any, adapter: Any, note: Any) -> dict[str, Measure]:
        return {}

    def answers(self, model: Any, adapter: Any, note: Any) -> list[Answered]:
        return [Answered(number // model.out_features, number) for number in range(4)]


def test_of_an_evaluator_of_somebody_else():
    evaluator = Agreement(of=Ends())
    dense = evaluator.remember(nn.Linear(1, 1), LlamaAdapter(), ignore)
    found = evaluator(nn.Linear(1, 2), LlamaAdapter(), ignore, dense)["agreement of answers"]
    assert found.value == 1 / 4  # 0 1 2 3 and 0 0 1 1


def test_settings_it_cannot_use():
    with pytest.raises(EcoflapError, match="it has neither data nor of: give one"):
        Agreement()
    with pytest.raises(EcoflapError, match="it has both data and of: give one"):
        Agreement(Given([]), Ends())
    loss: Evaluator = Loss(Given([]))
    with pytest.raises(EcoflapError, match="of is Loss, which gives no single answers"):
        Agreement(of=loss)
    with pytest.raises(EcoflapError, match="batch_size is 0"):
        Agreement(Given([]), batch_size=0)
    with pytest.raises(EcoflapError, match="agreement compares a model with the dense one: give as dense"):
        Agreement(Given([]))(pico_t5.build(), LlamaAdapter(), ignore)


class Silent(Ends):
    """An evaluator whose data are empty."""

    def answers(self, model: Any, adapter: Any, note: Any) -> list[Answered]:
        return []


def test_no_answer_at_all():
    with pytest.raises(DataError, match="agreement: Silent gave no answer"):
        Agreement(of=Silent()).remember(nn.Identity(), LlamaAdapter(), ignore)


class Bare(Ends):
    """An evaluator whose answers are not what an evaluator gives."""

    def answers(self, model: Any, adapter: Any, note: Any) -> Any:
        return ["red", "blue"]


def test_answers_of_another_form_are_refused():
    said = r"evaluator Bare, asked for its answers, answered \['red', 'blue'\], and is to answer Iterable\[Answered\]"
    with pytest.raises(EcoflapError, match=said):
        Agreement(of=Bare()).remember(nn.Identity(), LlamaAdapter(), ignore)


@pytest.mark.skipif("clip" not in ROWS, reason="this environment has no CLIP")
def test_words_of_a_model_that_says_none_are_refused_and_its_choices_are_not():
    family = ROWS["clip"]
    model, adapter = family.build(), family.adapter()
    here = context(adapter=adapter, model=model)
    (problem,) = Agreement(Given([])).problems(here)
    assert "ClipAdapter compares images with texts" in problem
    assert list(Agreement(of=ZeroShot(Labelled(), classes=("a", "b"))).problems(here)) == []
    with pytest.raises(ModelError, match="agreement looks at logits over words or classes"):
        Agreement(Given(family.samples(2)), batch_size=2).remember(model, adapter, ignore)


def test_says_how_many_samples_the_loss_is_given():
    assert Agreement(Given([]), batch_size=3).loss_batch_size == 3
    assert Agreement(of=Ends()).loss_batch_size is None
