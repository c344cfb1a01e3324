"""Classification by a model's own head, by hand."""

from typing import Any

import pico_vit
import pytest
import torch
from labelled import Given, labelled

from ecoflap.core.contracts.protocols import Evaluator, ignore
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.plugins.evaluators.classification import Classification
from ecoflap.plugins.evaluators.shared.checks import check_same_order


def classifier(classes: int) -> Any:
    return pico_vit.build("vit", pico_vit.CLASSIFIER, num_labels=classes)


def test_is_an_evaluator():
    assert isinstance(Classification(Given()), Evaluator)


def test_by_hand():
    model, adapter, samples = classifier(8), pico_vit.adapter(), labelled([n % 8 for n in range(11)])
    with torch.no_grad():
        logits = classifier(8).double()(pixel_values=adapter.collate(model, samples)["pixel_values"].double()).logits
    right = logits.argsort(1, descending=True) == torch.tensor([n % 8 for n in range(11)])[:, None]
    found = Classification(Given(samples), batch_size=4)(model, adapter, ignore)
    assert found.keys() == {"top-1", "top-5"}
    assert found["top-1"].value == pytest.approx(float(right[:, 0].double().mean()))
    assert found["top-5"].value == pytest.approx(float(right[:, :5].any(1).double().mean()))
    assert 0 < found["top-5"].value < 1
    assert (found["top-1"].n, found["top-1"].unit, found["top-1"].larger_is_better) == (11, "images", True)


def test_a_model_that_knows_nothing_is_right_by_chance():
    model, samples = classifier(8), labelled([n % 8 for n in range(8)])
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.zero_()
    found = Classification(Given(samples))(model, pico_vit.adapter(), ignore)
    assert (found["top-1"].value, found["top-5"].value) == (1 / 8, pytest.approx(5 / 8))


def test_of_few_classes_only_the_first_is_told_and_no_graph_is_built():
    model = classifier(5)
    assert Classification(Given(labelled([0, 4])))(model, pico_vit.adapter(), ignore).keys() == {"top-1"}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Given(), "classification: its data holds no image"),
        (Given(labelled([1, None])), "1 of 2 images have no label"),
        (Given(labelled([1, 5])), r"has the labels 5, and there are classes 0 to 4"),
        (Given(labelled([1]), ("cat", "dog")), r"data has 2 classes \(cat, dog\), and the model's head has 5: their"),
    ],
)
def test_data_it_cannot_use(given: Given, told: str):
    with pytest.raises(DataError, match=told):
        Classification(given)(classifier(5), pico_vit.adapter(), ignore)


def test_classes_in_another_order_than_the_models_are_refused():
    model = classifier(3)
    model.config.id2label = {0: "fox", 1: "owl", 2: "taxi"}
    check_same_order("classification", ("fox", "owl", "taxi"), model)
    check_same_order("classification", ("Fox", "owl", "taxi"), model)  # other words tell nothing
    check_same_order("classification", None, model)
    with pytest.raises(DataError, match=r"in another order: 1 is 'taxi', and the model's 'owl'\. Give the data names"):
        Classification(Given(labelled([1]), ("fox", "taxi", "owl")))(model, pico_vit.adapter(), ignore)


def test_models_it_cannot_use():
    with pytest.raises(ModelError, match="needs a model that can classify images: a ViTModel has no classifier"):
        Classification(Given(labelled([1])))(pico_vit.build(), pico_vit.adapter(), ignore)
    model = classifier(5)
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite; the model is broken"):
        Classification(Given(labelled([1])))(model, pico_vit.adapter(), ignore)
    with pytest.raises(EcoflapError, match="batch_size is 0"):
        Classification(Given(), 0)
