"""How far a file may be from the model, and what is said of one that is farther off."""

import pytest
import torch
from torch import Tensor, nn

from ecoflap.core.contracts.records import Check, View
from ecoflap.core.errors import ModelError
from ecoflap.exporters.shared.comparison import Comparison, difference, tolerance_problems

INF, NAN = float("inf"), float("nan")


def test_differences_of_what_is_not_finite():
    a = torch.tensor([1.0, -INF, NAN, -4.0])
    one = difference("x", a, a)
    assert (one.largest, one.scale, one.share, one.is_over(0.0)) == (0.0, 4.0, 0.0, False)
    for other in ([1.0, 0.0, NAN, -4.0], [NAN, -INF, NAN, -4.0], [1.0, INF, NAN, -4.0]):
        found = difference("x", a, torch.tensor(other))
        assert (found.largest, found.share, found.is_over(1e9)) == (INF, INF, True)


def test_differences_of_what_is_empty_or_zero():
    empty, zero = torch.zeros(0, 3), torch.zeros(2)
    assert difference("x", empty, empty).largest == 0
    assert not difference("x", zero, zero).is_over(0.0)
    assert difference("x", zero, zero + 1e-30).share == INF
    assert difference("x", zero, zero + 1e-30).is_over(1e9)


def test_whole_numbers_and_truths_are_compared_too():
    assert difference("x", torch.tensor([3, 5]), torch.tensor([3, 1])).largest == 4
    assert difference("x", torch.tensor([True, False]), torch.tensor([True, True])).largest == 1


def comparison(*outputs: Tensor) -> Comparison:
    """Of a model that gives [4, -2] and [100], and a file that gives these outputs."""
    examples = {"x": torch.zeros(2, 1)}, {"x": torch.zeros(3, 1)}
    view = View("text", nn.Identity(), *examples, ("small", "large"), {})
    model = torch.tensor([4.0, -2.0]), torch.tensor([100.0])
    return Comparison(view, examples, lambda inputs: model, lambda inputs: outputs, "a runtime")


def test_the_output_that_is_farthest_off_for_its_size_is_told():
    found = comparison(torch.tensor([4.0, -1.0]), torch.tensor([99.0])).check("text.bin", 0.5, "")
    assert found == Check("text.bin", "text", "a runtime", 1.0, 2.0)


def test_out_of_tolerance_is_refused():
    off = comparison(torch.tensor([4.0, -1.0]), torch.tensor([99.0]))
    message = (
        r"text\.bin: output 'small' in a runtime is up to 1 from the model's, 0\.25 of its .* tolerance is 0\.2\. .*Go"
    )
    with pytest.raises(ModelError, match=message):
        off.check("text.bin", 0.2, "Go elsewhere.")


@pytest.mark.parametrize(
    ("small", "told"),
    [
        (torch.tensor([4.0]), r"output 'small' is \[1\] of float32 in a runtime and \[2\] of float32 in the model"),
        (torch.tensor([4, -2]), r"output 'small' is \[2\] of int64 in a runtime"),
    ],
)
def test_another_shape_or_type_is_refused_whatever_the_tolerance(small, told):
    with pytest.raises(ModelError, match=rf"view 'text': {told}.* on inputs of sizes x \[2, 1\]") as error:
        comparison(small, torch.tensor([100.0])).check("text.bin", INF, "")
    assert len(error.value.problems) == 1


def test_a_tolerance_is_a_share():
    assert [*tolerance_problems(0.0), *tolerance_problems(1e-4)] == []
    for tolerance in (-1.0, NAN, INF):
        (problem,) = tolerance_problems(tolerance)
        assert problem.startswith(f"tolerance {tolerance} is no share")
