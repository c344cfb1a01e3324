"""Copies in which a tensor's numbers lie as they lay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.strides import axes_as_they_lie, in_their_places, layout_but_dense


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms())
def test_a_copy_has_the_strides_of_what_was_turned(shape, random):
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    order = random.sample(range(len(shape)), len(shape))
    turned = whole.permute(order)
    axes = axes_as_they_lie(turned)
    laid_out = turned.permute(axes)
    assert torch.equal(laid_out.reshape(-1), whole.reshape(-1))  # in the order of memory
    copy = in_their_places(laid_out.contiguous(), axes)
    assert torch.equal(copy, turned)
    longer = [axis for axis, size in enumerate(turned.shape) if size > 1]  # of one step nobody takes the length
    assert [copy.stride(axis) for axis in longer] == [turned.stride(axis) for axis in longer]


def test_what_has_no_axes_and_what_lies_as_it_is_written_stays_so():
    assert axes_as_they_lie(torch.tensor(3.0)) == ()
    assert axes_as_they_lie(torch.zeros(2, 3, 4)) == (0, 1, 2)
    assert axes_as_they_lie(torch.zeros(2, 1, 4)) == (0, 1, 2)


@pytest.mark.filterwarnings("ignore:.*(beta state|prototype stage)")  # torch's of some layouts
@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (lambda: torch.ones(2, 3).T, ""),
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    ],
    ids=["dense", "coo", "csr", "nested"],
)
def test_a_layout_is_named_where_it_is_no_dense_one(make, layout):
    assert layout_but_dense(make()) == layout
