"""Every parameter that is never pruned has a reason, and a recipe that includes one is told it."""

from typing import Any

import pytest
import torch
from torch import nn

from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.model.never_pruned import ParameterKind, never_pruned, tied_names, why_not_included


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    """One of each reason, and a head that is the embedding too."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.patches, self.filter = nn.Conv2d(3, 4, 2), nn.Conv1d(4, 4, 2)
        self.block = Layers()
        self.queries = nn.Parameter(torch.zeros(2, 3, 4))
        self.projection = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def taken_apart() -> tuple[nn.Module, Anatomy, list[Tower]]:
    model = Model()
    towers = [Tower("text", (Block("block", model.block, "text"),)), Tower.of_matrix(model, "projection")]

    def layers(block: Block) -> list[Layer]:
        module: Any = block.module
        if block.name == "block":
            return [Layer("block.used.weight", module.used)]
        return [Layer(f"{block.name}.weight", module)]

    return model, Anatomy.of(towers, layers), towers


def test_each_parameter_that_no_layer_is_has_its_reason(taken_apart):
    found = {one.name: (one.shape, one.reason) for one in never_pruned(*taken_apart)}
    assert found == {
        "queries": ((2, 3, 4), "parameter of a Model, which no linear layer applies"),
        "embedding.weight": ((8, 4), "embedding"),
        "patches.weight": ((4, 3, 2, 2), "patch embedding"),
        "patches.bias": ((4,), "bias or scale"),
        "filter.weight": ((4, 4, 2), "convolution"),
        "filter.bias": ((4,), "bias or scale"),
        "block.used.bias": ((4,), "bias or scale"),
        "block.unused.weight": ((4, 4), "not used by the loss, or not offered by the adapter"),
        "block.norm.weight": ((4,), "norm"),
        "block.norm.bias": ((4,), "bias or scale"),
        "projection.weight": ((4, 4), "outside the blocks; a recipe takes it in with include: [projection]"),
    }


def test_each_parameter_that_no_layer_is_has_its_kind(taken_apart):
    left_out = {"block.unused": "embedding", "queries": "it is of no use", "embedding": "never asked for"}
    found = {one.name: one.kind for one in never_pruned(*taken_apart, left_out=left_out)}
    assert found == {
        "queries": ParameterKind.LEFT_OUT,
        "embedding.weight": ParameterKind.EMBEDDING,
        "patches.weight": ParameterKind.CONVOLUTION,
        "patches.bias": ParameterKind.SMALL,
        "filter.weight": ParameterKind.CONVOLUTION,
        "filter.bias": ParameterKind.SMALL,
        "block.used.bias": ParameterKind.SMALL,
        "block.unused.weight": ParameterKind.LEFT_OUT,
        "block.norm.weight": ParameterKind.SMALL,
        "block.norm.bias": ParameterKind.SMALL,
        "projection.weight": ParameterKind.OFFERED,
    }
    kinds = {one.name: one.kind for one in never_pruned(*taken_apart)}
    assert (kinds["queries"], kinds["block.unused.weight"]) == (ParameterKind.NOT_LINEAR, ParameterKind.UNUSED)


def test_what_an_adapter_leaves_out_for_is_not_read_into_what_it_does_not(taken_apart):
    left_out = {"block.unused": "embedding"}
    said = why_not_included("embedding", *taken_apart, left_out)
    assert said.startswith("embedding is never pruned: embedding.weight is an embedding. ")
    said = why_not_included("block.unused", *taken_apart, left_out)
    assert said.startswith("block.unused is never pruned: block.unused.weight is left out: embedding. ")


def test_a_parameter_of_several_names_is_tied(taken_apart):
    model, *_ = taken_apart
    assert tied_names(model, "head.weight") == ["embedding.weight"]
    assert tied_names(model, "block.used.weight") == []
    assert tied_names(model, "nowhere") == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("embedding", "embedding is never pruned: embedding.weight is an embedding. "),
        ("patches.weight", "patches.weight is never pruned: patches.weight is a patch embedding. "),
        ("block.unused", "block.unused is never pruned: block.unused.weight is not used by the loss, or not offered "),
        ("block.used.weight", "block.used.weight is pruned anyway, being in a tower. "),
        ("projectoin", "projectoin is not in this model. Did you mean 'projection'? "),
        ("x", "x is not in this model. "),
    ],
)
def test_a_recipe_is_told_why_it_cannot_include_something(taken_apart, name, told):
    said = why_not_included(name, *taken_apart)
    assert said.startswith(told)
    assert said.endswith("Can be included here: projection.")
