"""Where the shapes of two models differ."""

import torch

from ecoflap.core.model.shapes import ShapeDifference, first_difference, shapes_of


def test_equal_shapes_in_another_order_do_not_differ():
    assert first_difference({"a": (1, 2), "b": (3,)}, {"b": (3,), "a": (1, 2)}) is None
    assert first_difference({}, {}) is None


def test_the_first_difference_is_named_and_all_are_counted():
    one, other = {"a": (1,), "b": (2, 3), "c": ()}, {"d": (4,), "a": (1,), "b": (2, 4)}
    assert first_difference(one, other) == ShapeDifference("b", "[2, 3]", "[2, 4]", 3)


def test_what_only_one_of_them_has_is_missing_in_the_other():
    assert first_difference({"a": ()}, {}) == ShapeDifference("a", "[]", "missing", 1)
    assert first_difference({}, {"a": (5,)}) == ShapeDifference("a", "missing", "[5]", 1)


def test_shapes_are_those_of_a_state_dict():
    assert shapes_of(torch.nn.Linear(2, 3).state_dict().items()) == {"weight": (3, 2), "bias": (3,)}
