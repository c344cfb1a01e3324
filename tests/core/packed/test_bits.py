"""Floats counted, compared and moved by their bits, held against what torch says of the numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.packed import bits
from ecoflap.core.packed.bits import (
    are_equal_but_for_signs_of_zeros,
    bits_of,
    gathered,
    nonzero_bits,
    nonzeros_of,
    nonzeros_pruned,
    spread,
    zeroed,
)

NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0**-24, float("inf"), float("-inf"), float("nan"), -float("nan")]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = dict(zip(TYPES, (torch.int16, torch.int16, torch.int32, torch.int64), strict=True))
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
several = st.lists(st.sampled_from(NUMBERS), max_size=20)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(bits, "_PIECE", 8)


@types
@given(numbers=several)
def test_nonzeros_are_those_that_torch_counts(dtype, numbers):
    assert nonzeros_of(torch.tensor(numbers, dtype=dtype)) == torch.tensor(numbers, dtype=dtype).count_nonzero()


@types
@given(numbers=several, at=st.integers(0, 19), other=st.sampled_from(NUMBERS))
def test_only_signs_of_zeros_may_differ(dtype, numbers, at, other):
    changed = [other if number == at else value for number, value in enumerate(numbers)]
    one, another = torch.tensor(numbers, dtype=dtype), torch.tensor(changed, dtype=dtype)
    nan, same = one.isnan() & another.isnan(), one == another
    # the sign of NaN as it came out of the conversion: bfloat16 has one sign for it alone
    same |= nan & (one.view(INTEGERS[dtype]).sign() == another.view(INTEGERS[dtype]).sign())
    assert are_equal_but_for_signs_of_zeros(one, another) == bool(same.all())


def packed(mask):
    """Bits as they are in files, one by one."""
    places = range(0, len(mask), 8)
    return np.array([sum(kept << bit for bit, kept in enumerate(mask[at : at + 8])) for at in places], dtype=np.uint8)


@types
@given(mask=st.lists(st.booleans(), max_size=20))
def test_what_is_kept_is_put_where_it_was(dtype, mask):
    keep = torch.tensor(mask, dtype=torch.bool)
    weight = torch.arange(1, len(mask) + 1).to(dtype).masked_fill(~keep, 0)
    again = spread(bits_of(weight[keep]), packed(mask), len(mask))
    assert torch.equal(again.view(dtype) if len(again) else weight, weight)


@types
@given(numbers=several, mask=st.lists(st.booleans(), min_size=20, max_size=20))
def test_what_a_mask_keeps_and_prunes_is_what_torch_says(dtype, numbers, mask):
    weight = torch.tensor(numbers, dtype=dtype)
    mask = mask[: len(numbers)]
    keep, bits = torch.tensor(mask, dtype=torch.bool), packed(mask)
    as_numbers = bits_of(weight).copy()
    kept, dense = gathered(bits_of(weight), bits, int(keep.sum())), zeroed(bits_of(weight), bits)
    assert kept.tolist() == bits_of(weight[keep]).tolist()
    assert dense.tolist() == bits_of(weight.masked_fill(~keep, 0)).tolist()
    assert nonzeros_pruned(weight, bits) == int(weight[~keep].count_nonzero())
    assert nonzero_bits(weight).tolist() == packed([bool(number) for number in weight.ne(0)]).tolist()
    assert bits_of(weight).tolist() == as_numbers.tolist()  # none of these writes into what it is given


def test_a_mask_is_unpacked_a_piece_at_a_time(monkeypatch):
    """At no time is there a byte for each weight."""
    unpack, unpacked = np.unpackbits, []
    monkeypatch.setattr(np, "unpackbits", lambda some, **how: unpacked.append(8 * len(some)) or unpack(some, **how))
    bits = np.array([255, 255, 15], np.uint8)
    assert spread(np.arange(1, 21, dtype=np.int16), bits, 20).tolist() == [*range(1, 21)]
    assert gathered(np.arange(1, 21, dtype=np.int16), bits, 20).tolist() == [*range(1, 21)]
    assert zeroed(np.arange(1, 21, dtype=np.int16), bits).tolist() == [*range(1, 21)]
    assert nonzeros_pruned(torch.ones(20), bits) == 0
    assert unpacked == 4 * [8, 8, 8]


def test_a_transposed_matrix_is_read_in_its_own_order():
    weight = torch.tensor([[1.0, 0.0], [2.0, 3.0]]).T
    assert bits_of(weight).view(np.float32).tolist() == [1.0, 2.0, 0.0, 3.0]
