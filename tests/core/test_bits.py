"""Numbers by their bits, and masks of one bit a weight."""

import math

import numpy as np
import pytest
import torch

from ecoflap.core.bits import INTEGERS, as_integers, count_nonzero, full_mask, is_nonzero, pack_mask, same_bits


@pytest.fixture
def odd(dtype):
    smallest = torch.finfo(dtype).smallest_normal / 8  # below what is normal, and above nothing
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, smallest, -smallest, math.nan, math.inf, -math.inf], dtype=dtype)
    return values.repeat(3, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros_of_both_signs_are_zero_and_nothing_else(odd):
    expected = [value != 0 for value in odd[0].tolist()]  # exactly, in Python
    assert is_nonzero(odd).tolist() == [expected] * 3
    assert is_nonzero(odd.T).T.tolist() == [expected] * 3
    assert count_nonzero(odd) == 3 * sum(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_is_compared(odd):
    other = odd.clone()
    assert same_bits(odd, other)
    assert same_bits(odd.T, other.T)
    other[1, 0] = -0.0
    assert not same_bits(odd, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_bit_of_a_number_is_in_the_whole_number(dtype):
    numbers = torch.arange(-8, 8).to(dtype).reshape(4, 4).T
    whole = as_integers(numbers)
    assert whole.dtype == INTEGERS[dtype.itemsize]
    assert torch.equal(whole.view(torch.uint8), numbers.contiguous().view(torch.uint8))


def test_the_smallest_numbers_are_no_zeros_where_torch_flushes_them():
    tiny = torch.tensor([1e-45, 0.0])
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU flushes none")
    try:
        assert is_nonzero(tiny).tolist() == [True, False]
        assert count_nonzero(tiny) == 1
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("size", [0, 1, 8, 13])
def test_all_of_so_many_are_kept(size):
    every = torch.ones(size, dtype=torch.bool)
    assert full_mask(size).tolist() == np.packbits(every.numpy(), bitorder="little").tolist()
    assert torch.equal(full_mask(size), pack_mask(every))
