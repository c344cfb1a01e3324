"""What an adapter may hand over as a model taken apart, and what is refused."""

import re

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


def test_towers_and_blocks_of_one_name_are_refused(model):
    one, other = (Block(name, model[name], "language") for name in ("a", "b"))
    with pytest.raises(ModelError, match="the adapter lists two towers named 'language': each should have a name"):
        Anatomy.of([Tower("language", (one,)), Tower("language", (other,))], layers)
    with pytest.raises(ModelError, match="the adapter lists two blocks named 'a': each should have a name of its own"):
        Anatomy.of([Tower("language", (one, other, one))], layers)


def test_two_layers_of_one_name_are_refused():
    """Each has the name of its parameter within its block."""
    blocks = tuple(Block(name, nn.Sequential(nn.Linear(2, 2)), "language") for name in ("a", "b"))
    with pytest.raises(
        ModelError, match=r"two layers by the name 0\.weight: each has that of its parameter in the model"
    ):
        Anatomy.of([Tower("language", blocks)], lambda block: [Layer("0.weight", block.module[0])])


@pytest.mark.parametrize("part", [3, -1, (2, 4), (1, 1)])
def test_a_part_that_its_parameter_does_not_have_is_refused(towers, part):
    """The parameter of a has three rows."""
    said = rf"the layer a\.weight is the part {re.escape(str(part))} of a parameter that has 3 along its first axis"
    with pytest.raises(ModelError, match=said):
        Anatomy.of(towers, lambda block: [Layer("a.weight", block.module, part=part)])


def test_a_layout_that_is_none_is_refused_with_the_nearest(towers, model):
    misspelt = Layer("a.weight", model["a"])
    object.__setattr__(misspelt, "layout", "batch_token")  # as nobody checks it where no test runs
    with pytest.raises(ModelError, match=r"the layer a\.weight: no layout named 'batch_token'\..*'batch token'"):
        Anatomy.of(towers, lambda block: [misspelt])


def test_layers_of_names_that_no_parameter_has_are_refused_each_block_once(model):
    misspelt = [Tower("language", tuple(Block(f"{name}s", model[name], "language") for name in ("a", "b")))]
    anatomy = Anatomy.of(misspelt, lambda block: [Layer(f"{block.name}.weight", block.module)])
    with pytest.raises(ModelError) as refused:
        anatomy.refuse_unnamed(model)
    assert [problem.split(" The model")[0] for problem in refused.value.problems] == [
        f"the adapter lists a layer by the name {name}s.weight, of the block '{name}s'. Did you mean '{name}.weight'?"
        for name in ("a", "b")
    ]


def test_parts_of_parameters_and_tied_ones_have_names(model):
    model["b"].weight = nn.Parameter(torch.zeros(3, 2))
    model["head"].weight = model["b"].weight
    towers = [Tower("language", (Block("a", model["a"], "language"), Block("head", model["head"], "language")))]

    def parts(block):
        return [Layer(f"{block.name}.weight[0:2]", block.module, part=(0, 2))]

    Anatomy.of(towers, parts).refuse_unnamed(model)


def odd_tower(name, blocks):
    """Make what an author may write, which the types that tests check would refuse before it is looked at."""
    tower = object.__new__(Tower)
    for field, value in {"name": name, "blocks": blocks, "prunable": True, "outside": False}.items():
        object.__setattr__(tower, field, value)
    return tower


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "`towers` gives None, and no Towers"),
        ({"language": 1}, "`towers` gives a str where a Tower is wanted"),
        ([nn.Linear(2, 2)], "`towers` gives a Linear where a Tower is wanted"),
        ([odd_tower(3, ())], "`towers` gives a Tower of the name 3, which is no text"),
        ([odd_tower("language", (nn.Linear(2, 2),))], "tower 'language' gives a Linear where a Block is wanted"),
        ([odd_tower("language", 3)], "tower 'language' gives a int, and no Blocks"),
        (
            [Tower("language", (Block("a", nn.Linear(2, 2), "vision"),))],
            "lists the block a in the tower 'language', and its `tower` is 'vision'",
        ),
    ],
)
def test_what_is_no_tower_is_told_as_that(given, said):
    with pytest.raises(ModelError, match=said):
        Anatomy.of(given, layers)


def test_what_is_no_layer_or_has_another_name_than_its_parameter_is_told_as_that(towers):
    """Its mask would be looked for in vain once everything is pruned, and what saves it would be blamed."""
    with pytest.raises(ModelError, match="`layers` gives a Linear where a Layer is wanted"):
        Anatomy.of(towers, lambda block: [block.module])
    for name in ("a.bias", "b.weight", "weight"):
        with pytest.raises(ModelError, match=rf"by the name {name}, and its parameter is called a\.weight"):
            Anatomy.of(towers, lambda block, name=name: [Layer(name, block.module)] if block.name == "a" else [])


def test_a_block_may_be_called_anything():
    block = Block("the first", nn.ModuleDict({"proj": nn.Linear(2, 2)}), "language")
    tower = Tower("language", (block,))
    given = [Layer("model.layers.0.proj.weight", block.module["proj"])]
    assert [layer.name for _, layer in Anatomy.of([tower], lambda _: given).layers()] == ["model.layers.0.proj.weight"]
    with pytest.raises(
        ModelError, match=r"by the name model\.proj2\.weight, and its parameter is called the first\.proj\.w"
    ):
        Anatomy.of([tower], lambda _: [Layer("model.proj2.weight", block.module["proj"])])


def test_towers_and_layers_may_be_given_one_by_one(towers):
    anatomy = Anatomy.of((tower for tower in towers), lambda block: iter(layers(block)), include=None)
    assert [layer.name for _, layer in anatomy.layers()] == ["a.weight", "b.weight", "head.weight"]
