"""Layers that a budget leaves without a weight: which share does that, and what a plan says of the rest."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ecoflap.core.budget.counts import Pattern, keep_count
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.planning.emptied import emptied, emptying_shares, weightless
from ecoflap.core.planning.plan import Pool, make_plan
from ecoflap.plugins.allocators.uniform import Uniform


def pool(sparsity, *shapes, name="model"):
    """A pool of one block with a layer of each shape."""
    block = Block("b", nn.Identity(), "language")
    layers = [Layer(f"b.{number}", nn.Linear(*shape[::-1], device="meta")) for number, shape in enumerate(shapes)]
    return Pool(name, sparsity, tuple((block, layer) for layer in layers))


def planned(*pools):
    return make_plan(pools, Uniform(), "layer", None)


def test_a_share_that_leaves_a_model_nothing_is_told_with_the_most_that_does_not():
    one = pool(Fraction("0.999"), (10, 10), (20, 10))
    (told,) = emptying_shares([one], None)
    assert told.startswith("sparsity: 99.9 % of 300 weights leaves none of them. Prune at most 0.996")
    (told,) = emptying_shares([pool(Fraction("0.999"), (10, 10), name="vision")], None)
    assert told.startswith("towers.vision.sparsity: 99.9 %")


def test_masks_that_keep_nothing_are_told_as_masks():
    """No recipe may ask for all of it; masks of elsewhere may have it."""
    (told,) = emptying_shares([pool(Fraction(1), (10, 10))], None)
    assert told == "sparsity: the masks keep none of 100 weights. Give masks that keep some"


def test_layers_that_a_share_leaves_nothing_are_named():
    one = pool(Fraction("0.99"), (100, 100), (3, 3), (2, 4))
    (told,) = emptying_shares([one], planned(one))
    assert "99 % leaves no weight in 2 of 3 layers, of which the smallest has 8: b.1, b.2. Prune at most 0.8" in told
    assert list(emptying_shares([one], None)) == []  # scores may give these layers some of the others'


def test_what_a_plan_leaves_nothing_though_its_share_would_not_is_told_of_the_plan_alone():
    class Unequal:
        def __call__(self, groups, keep):
            return [keep, 0]

    one = pool(Fraction(1, 2), (10, 10), (10, 10))
    made = make_plan([one], Unequal(), "layer", None)
    assert list(emptying_shares([one], made)) == []
    assert emptied(made).startswith("1 of 2 layers keep none of their weights, and answer zeros: b.1. If that is not")
    assert emptied(planned(one)) is None


def test_patterns_leave_every_layer_something():
    one = pool(Pattern(1, 4), (4, 4))
    assert list(emptying_shares([one], planned(one))) == []


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_that_have_no_weights_to_begin_with_are_named():
    found = list(weightless([pool(Fraction(1, 2), (10, 10), (0, 10)), pool(Pattern(2, 4), (4, 0), name="vision")]))
    assert len(found) == 1
    assert "2 of 3 layers have no weights: b.1, b.0. A size in the model's configuration is 0, such as" in found[0]
    assert list(weightless([pool(Fraction(1, 2), (10, 10))])) == []


@given(st.integers(1, 10**7))
def test_the_most_that_is_named_leaves_a_weight(size):
    most = re.search(r"at most (\S+)\.$", next(emptying_shares([pool(1 - Fraction(1, 2 * size), (1, size))], None)))[1]
    assert keep_count(size, most) >= 1
    assert float(most) > 1 - 12 / size  # and it is not far from the most there is
