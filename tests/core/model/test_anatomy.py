"""What an adapter may hand over as a model taken apart, and what is refused."""

import pytest
import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower


@pytest.fixture
def model():
    return nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


@pytest.fixture
def towers(model):
    blocks = tuple(Block(name, model[name], "language") for name in ("a", "b"))
    return [Tower("language", blocks), Tower.of_matrix(model, "head")]


def layers(block):
    return [Layer(f"{block.name}.weight", block.module)]


def test_a_matrix_outside_the_blocks_is_in_only_where_it_is_included(towers):
    assert [block.name for block in Anatomy.of(towers, layers).blocks] == ["a", "b"]
    assert [block.name for block in Anatomy.of(towers, layers, include=["head"]).blocks] == ["a", "b", "head"]


def test_layers_come_with_their_blocks_in_order(towers):
    anatomy = Anatomy.of(towers, layers)
    assert [(block.name, layer.name, layer.shape, layer.size) for block, layer in anatomy.layers()] == [
        ("a", "a.weight", (3, 2), 6),
        ("b", "b.weight", (4, 3), 12),
    ]
    assert [layer.name for _, layer in anatomy.layers(anatomy.blocks[1:])] == ["b.weight"]


def test_a_weight_is_looked_up_each_time(model):
    layer = Layer("a.weight", model["a"])
    model["a"].weight = nn.Parameter(torch.zeros(5, 2))
    assert layer.shape == (5, 2)


@pytest.mark.parametrize("attribute", ["wieght", "in_features"])
def test_a_layer_that_is_no_parameter_is_named(model, attribute):
    told = f"the layer a.weight is no parameter: its module, a Linear, has none named '{attribute}'. The adapter's"
    with pytest.raises(ModelError, match=told):
        _ = Layer("a.weight", model["a"], attribute).size


def test_a_model_without_layers_is_refused(towers):
    with pytest.raises(ModelError, match="the adapter finds no prunable layer in this model"):
        Anatomy.of(towers, lambda block: [])


def test_a_weight_that_is_listed_twice_is_refused(towers, model):
    with pytest.raises(ModelError, match=r"one weight twice, as a\.weight and as a\.weight"):
        Anatomy.of(towers, lambda block: 2 * layers(block))
    model["b"].weight = model["a"].weight
    with pytest.raises(ModelError, match=r"one weight twice, as a\.weight and as b\.weight"):
        Anatomy.of(towers, layers)
