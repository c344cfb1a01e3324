import math
from statistics import stdev
from typing import Any

import pico_t5
import pytest
import torch
from speaking import Given
from table import ROWS
from torch import nn

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.plugins.evaluators.loss import Loss


class Counted(LlamaAdapter):
    """Its loss is the mean of the numbers in the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def loss(self, model: nn.Module, batch: Any) -> Any:
        assert not torch.is_grad_enabled()
        self.batches.append(batch["input_ids"][:, 0].tolist())
        return batch["input_ids"][:, 0].double().mean()


class Words(nn.Module):
    """A model of which nothing is asked but how many tokens it knows."""

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(100, 1)


def numbers(*values: int) -> Given:
    return Given([Sample(tokens=torch.tensor([value])) for value in values])


def test_is_an_evaluator():
    assert isinstance(Loss(Given([])), Evaluator)


def test_by_hand():
    """Batches of 2, 2 and 1 + 2: the last sample, alone, joins those before."""
    adapter = Counted()
    found = Loss(numbers(1, 3, 2, 2, 9), 2)(Words(), adapter, ignore)["loss"]
    assert adapter.batches == [[1, 3], [2, 2, 9]]
    assert found.value == pytest.approx(17 / 5)
    assert (found.n, found.unit, found.larger_is_better) == (5, "samples", False)
    terms = [2 / 5 * (2 - 17 / 5), 3 / 5 * (13 / 3 - 17 / 5)]
    assert found.standard_error == pytest.approx(math.sqrt(2 * sum(term**2 for term in terms)))


@pytest.mark.parametrize(
    ("count", "size", "wanted"),
    [(1, 8, [1]), (2, 1, [1, 1]), (4, 3, [4]), (5, 3, [3, 2]), (6, 3, [3, 3]), (7, 3, [3, 4]), (3, 1, [1, 1, 1])],
)
def test_no_sample_is_alone_in_a_larger_batch(count: int, size: int, wanted: list[int]):
    adapter = Counted()
    Loss(numbers(*range(count)), size)(Words(), adapter, ignore)
    assert [len(batch) for batch in adapter.batches] == wanted
    assert [value for batch in adapter.batches for value in batch] == list(range(count))


def test_of_single_samples_the_error_is_that_of_a_mean():
    found = Loss(numbers(1, 2, 3, 6), 1)(Words(), Counted(), ignore)["loss"]
    assert found.value == 3
    assert found.standard_error == pytest.approx(stdev([1, 2, 3, 6]) / 2)
    assert Loss(numbers(5))(Words(), Counted(), ignore)["loss"].standard_error == math.inf


SOME = ("t5_untied_gated", "blip2_opt", "clip", "vit_classifier", "lavis BLIP-2 T5", "lavis BLIP-2 retrieval")


@pytest.mark.parametrize("row", [name for name in SOME if name in ROWS])
def test_is_the_adapters_own(row: str):
    model, adapter, data = ROWS[row].build(), ROWS[row].adapter(), ROWS[row].samples(4)
    adapter.towers(model)
    with torch.no_grad():
        halves = [float(adapter.loss(model, adapter.collate(model, data[at : at + 2]))) for at in (0, 2)]
    found = Loss(Given(data), 2)(model, adapter, ignore)["loss"]
    assert found.value == pytest.approx(sum(halves) / 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_says_how_many_samples_the_loss_is_given():
    assert Loss(Given([]), 3).loss_batch_size == 3


def test_a_contrastive_loss_is_refused_a_batch_of_one():
    use = {"use": "loss", "data": {"use": "image_text", "path": "x", "samples": 9}}
    recipe = {"version": 1, "model": "./m", "sparsity": 0.5, "prune": "magnitude"}
    registry = ecoflap.load_registry()
    alone, pairs = (parse_recipe({**recipe, "evaluate": [{**use, "batch_size": size}]}, registry=registry)
                    for size in (1, 2))  # fmt: skip
    assert list(pair_problems(alone)) == [
        "evaluate.0.batch_size is 1, but a contrastive loss compares pairs with each other: set 2 or more."
    ]
    assert list(pair_problems(pairs)) == []  # of nine samples none is left over


def test_a_broken_model_and_no_data():
    with pytest.raises(DataError, match="loss: its data holds no sample"):
        Loss(Given([]))(Words(), Counted(), ignore)
    model = pico_t5.build()
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(ModelError, match="loss: the loss of batch 0 is nan; the model is broken"):
        Loss(Given(pico_t5.questions(2)))(model, pico_t5.adapter(), ignore)
    with pytest.raises(EcoflapError, match="batch_size is 0; at least 1 is needed"):
        parse_recipe(
            {"version": 1, "model": "./m", "sparsity": 0.5, "prune": "magnitude", "evaluate": {
                "use": "loss", "data": {"use": "text"}, "batch_size": 0}},
            registry=ecoflap.load_registry(),
        )  # fmt: skip


class GivesOneForEach(Counted):
    """Its loss has a number for each sample, which is what adapters do first."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return batch["input_ids"][:, 0].double()


class Fails(Counted):
    """Its loss raises."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        raise KeyError("labels")


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (
            GivesOneForEach,
            r"the adapter GivesOneForEach, computing the loss, gave a tensor of \(2,\) in torch\.float64",
        ),
        (Fails, r"the adapter Fails, computing the loss, raised KeyError: 'labels'\."),
    ],
)
def test_an_adapter_whose_loss_is_none_is_named_and_not_the_evaluator(adapter, told):
    with pytest.raises(PartError, match=told):
        Loss(numbers(1, 2), batch_size=2)(Words(), adapter(), ignore)
