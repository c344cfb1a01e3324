"""Rounding to eight bits: what is zero stays zero, nothing is off by more than half a step, and divisors cancel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.exporters.openvino.inputs import Fed
from ecoflap.exporters.openvino.int8 import Inputs, rounded, rounding_of


@st.composite
def pruned_matrices(draw):
    outputs, inputs, seed = draw(st.integers(1, 9)), draw(st.integers(1, 33)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 10.0 ** draw(st.integers(-6, 3))
    return weight * (torch.rand(outputs, inputs, generator=generator) >= draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])))


@settings(max_examples=60)
@given(pruned_matrices(), st.booleans())
def test_a_rounded_matrix_is_half_a_step_off_at_most_and_its_zeros_are_zero(weight, divided):
    divisor = torch.linspace(0.5, 3, weight.shape[1]).numpy() if divided else None
    matrix = rounded(weight, Inputs(divisor, 0.1))
    assert matrix.weight.dtype == np.int8
    assert matrix.weight.min(initial=0) >= -127
    assert not matrix.weight[weight.numpy() == 0].any()
    wanted = weight.double().numpy() * (1 if divisor is None else divisor)
    off = np.abs(matrix.weight * matrix.scale.astype(np.float64) - wanted)
    assert (off <= matrix.scale * (0.5 + 1e-4)).all()
    used = weight.numpy().any(1)
    assert (np.abs(matrix.weight[used]).max(1, initial=0) == 127).all() or not used.any()
    assert (matrix.scale[~used] == 1).all()


def test_divisors_are_those_of_the_paper_up_to_one_factor():
    largest, heaviest = torch.tensor([1.0, 100.0, 4.0]), torch.tensor([0.25, 0.01, 1.0])
    for alpha in (0.0, 0.5, 0.8, 1.0):
        found = rounding_of(Fed(largest, heaviest), alpha)
        expected = largest.numpy() ** alpha / heaviest.numpy() ** (1 - alpha)
        assert found.divisor / found.divisor[0] == pytest.approx(expected / expected[0], rel=1e-5)
        assert np.median(found.divisor) == pytest.approx(1)
        assert found.step == pytest.approx((largest.numpy() / found.divisor).max() / 127)


def test_divisors_make_an_outlier_of_an_input_cheap():
    """One input is a hundred times as large as the others, as in a LLaMA."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 32, generator=generator), torch.randn(16, 32, generator=generator)
    x[:, 5] *= 100
    fed = Fed(x.abs().amax(0), weight.abs().amax(0))
    off = {}
    for alpha in (None, 0.5):
        inputs = rounding_of(fed, alpha)
        matrix = rounded(weight, inputs)
        divided = x.numpy() / (1 if inputs.divisor is None else inputs.divisor)
        product = np.round(divided / inputs.step) @ (matrix.weight * matrix.scale).T * inputs.step
        off[alpha] = np.abs(product - (x @ weight.T).numpy()).mean()
    assert off[0.5] < off[None] / 4


def test_inputs_that_were_always_zero_and_columns_without_weights_are_left_as_they_are():
    found = rounding_of(Fed(torch.tensor([0.0, 2.0, 8.0]), torch.tensor([1.0, 0.0, 2.0])), 0.5)
    assert found.divisor.tolist() == [1, 1, 1]
    assert found.step == pytest.approx(8 / 127)
    nothing = rounding_of(Fed(torch.tensor([3.0]), torch.tensor([0.0])), 0.5)
    assert (nothing.divisor.tolist(), nothing.step) == ([1], 1)


@pytest.mark.parametrize("smoothing", [None, 0.0, 0.8])
def test_an_input_that_is_multiplied_by_zeros_alone_sets_no_step(smoothing):
    """As of a channel a thousand times as large as the others, of which all weights are pruned."""
    without = rounding_of(Fed(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0])), smoothing)
    beside = rounding_of(Fed(torch.tensor([1.0, 2.0, 1e3]), torch.tensor([0.5, 1.0, 0.0])), smoothing)
    assert beside.step == without.step
