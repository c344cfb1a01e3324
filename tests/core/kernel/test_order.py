"""The kernel's order by the library and by numpy is one; what is damaged is refused, and nothing else is read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.bits import pack_mask
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import matrix, order
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import pack_dense, pack_rows, shape_for, unpack
from ecoflap.core.kernel.order import Shape, read_rows, shape_of, write_rows
from kernels import library, numbers, pruned, usable

INTEGERS = {4: torch.int32, 2: torch.int16}
needs_library = pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
shapes = given(
    st.integers(0, 70), st.integers(0, 140), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from(list(TYPES))
)


def as_stored(weight):
    """Mask bits and kept values, as a packed file has them."""
    mask = weight.view(INTEGERS[weight.dtype.itemsize]) != 0
    return pack_mask(mask), weight[mask]


def packed_by_numpy(weight):
    shape = shape_for(weight)
    out = torch.empty(shape.nbytes, dtype=torch.uint8)
    write_rows(out, shape, *as_stored(weight))
    return out


@settings(max_examples=40)
@shapes
def test_numpy_packs_and_decodes_bit_by_bit(outputs, inputs, sparsity, dtype):
    weight = pruned(outputs, inputs, sparsity, dtype)
    packed = packed_by_numpy(weight)
    assert shape_of(packed) == shape_for(weight)
    again = read_rows(packed, 0, outputs)
    assert torch.equal(again.view(INTEGERS[dtype.itemsize]), weight.view(INTEGERS[dtype.itemsize]))


@needs_library
@settings(max_examples=60)
@shapes
def test_the_library_packs_the_same_bytes(outputs, inputs, sparsity, dtype):
    weight = pruned(outputs, inputs, sparsity, dtype)
    expected, shape = packed_by_numpy(weight), shape_for(weight)
    rows = torch.empty(shape.nbytes, dtype=torch.uint8)
    pack_rows(rows, shape, *as_stored(weight))
    assert torch.equal(rows, expected)
    assert torch.equal(pack_dense(weight), expected)
    assert library().functions.ecoflap_packed_bytes(TYPES[dtype], outputs, inputs, shape.kept) == shape.nbytes


@pytest.mark.parametrize("values", ["exact", "int8"])
def test_the_smallest_numbers_are_kept_where_torch_takes_them_for_zeros(values):
    weight = torch.tensor([[1e-41, -1e-41, 0.0, -0.0, 2.0]])
    assert torch.set_flush_denormal(True) or pytest.skip("this CPU takes no number for zero")
    try:
        again, kept = unpack(pack_dense(weight, values=values)), shape_for(weight).kept
    finally:
        torch.set_flush_denormal(False)
    assert kept == 3
    assert torch.equal(again, weight if values == "exact" else torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0]]))


def test_the_order_is_what_the_page_says():
    """By hand: one output, three inputs, of which the second is pruned; columns in float32, a pair in bfloat16."""
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    packed = packed_by_numpy(weight).numpy()
    shape = shape_for(weight)
    masks = packed[shape.masks_at : shape.values_at].view("<u2")
    assert masks.tolist() == [1, 0, 1, *[0] * 29]
    assert packed[shape.values_at : shape.values_at + 8].view("<f4").tolist() == [1.0, 2.0]
    assert packed[64:80].view("<u8").tolist() == [0, 2]
    two = torch.tensor([[1.0, 3.0], [0.0, 4.0]]).bfloat16()
    packed, shape = packed_by_numpy(two).numpy(), shape_for(two)
    assert packed[shape.masks_at : shape.values_at].view("<u4").tolist() == [0b1011, *[0] * 15]
    values = torch.from_numpy(packed[shape.values_at : shape.values_at + 6].copy()).view(torch.bfloat16)
    assert values.tolist() == [1.0, 3.0, 4.0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_zero_of_either_sign_is_pruned(dtype):
    """What is pruned by multiplying with a mask is -0.0 where it was negative."""
    weight = pruned(20, 30, 0.5, dtype)
    packed = pack_dense(torch.where(weight == 0, torch.tensor(-0.0, dtype=dtype), weight))
    assert torch.equal(packed, pack_dense(weight))


def test_bytes_are_what_a_bit_and_the_kept_weights_take():
    shape = Shape(torch.bfloat16, 4096, 4096, 4096 * 2048)
    assert shape.nbytes / (4096 * 4096 * 2) == pytest.approx(0.5625, abs=0.0002)


@pytest.mark.parametrize("by", ["library", "numpy"])
def test_masks_and_values_that_do_not_fit_are_refused(by, monkeypatch):
    if by == "numpy":
        monkeypatch.setattr(matrix, "opened", lambda: "there is none")
    elif not usable():
        pytest.skip("there is no library of kernels here")
    bits, values = as_stored(pruned(20, 30, 0.5, torch.float32))
    shape = Shape(torch.float32, 20, 30, len(values))
    out = torch.empty(shape.nbytes, dtype=torch.uint8)
    more, fewer = bits.clone(), bits.clone()
    more[:] = 255
    fewer[0] = 0
    with pytest.raises(KernelError, match="more weights than there are values"):
        pack_rows(out, shape, more, values)
    with pytest.raises(KernelError, match="fewer weights than there are values"):
        pack_rows(out, shape, fewer, values)
    with pytest.raises(KernelError, match="are not of Shape"):
        pack_rows(out, shape, bits[:-1], values)
    bits, values = as_stored(torch.ones(1, 3))
    bits[0] |= 128
    out = torch.empty((shape := Shape(torch.float32, 1, 3, 3)).nbytes, dtype=torch.uint8)
    with pytest.raises(KernelError, match="bits after the mask's last weight"):
        pack_rows(out, shape, bits, values)


def said(use):
    """What is said of a matrix that is refused; nothing of one that is not."""
    try:
        use()
    except KernelError as error:
        known = ("packed matrix, or a damaged one" in str(error), "packed weights are" in str(error))
        return "damaged" if any(known) else str(error)
    return ""


def product(packed, outputs, inputs):
    return torch.ops.ecoflap.packed_linear(numbers(2, inputs, dtype=torch.float32), packed, None, outputs)


@needs_library
@settings(max_examples=150)
@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from([0.3, 0.9]))
def test_a_changed_byte_is_refused_or_gives_another_matrix(at, value, sparsity):
    """Whatever byte is changed, nothing is read beyond the memory: a guard page would end the process."""
    packed = pack_dense(pruned(40, 70, sparsity, torch.float32))
    damaged = packed.clone()
    damaged[at % len(packed)] = value
    for use in (lambda: product(damaged, 40, 70), lambda: unpack(damaged)):
        assert said(use) in ("", "damaged")


@needs_library
def test_masks_starts_and_lengths_that_contradict_each_other_are_refused():
    weight = pruned(64, 64, 0.5, torch.float32)
    packed, shape = pack_dense(weight), shape_for(weight)
    with pytest.raises(KernelError, match=r"header does not fit its length|another length"):
        product(packed[:-64], 64, 64)
    with pytest.raises(KernelError, match="no packed matrix"):
        product(torch.zeros_like(packed), 64, 64)
    for at, value in ((shape.masks_at, 255), (shape.values_at - 1, 255), (72, 7), (64, 1)):
        damaged = packed.clone()
        damaged[at] = value
        with pytest.raises(KernelError, match="damaged one"):
            product(damaged, 64, 64)
        with pytest.raises(KernelError, match="damaged one"):
            library().call("check", damaged.data_ptr(), len(damaged))
    library().call("check", packed.data_ptr(), len(packed))


@needs_library
def test_a_full_matrix_whose_starts_were_changed_reads_nothing_beyond():
    packed = pack_dense(torch.ones(64, 64))
    starts = packed[64 : 64 + 40].numpy().view("<u8")
    starts[1:4] = starts[4]
    memory = packed.clone()
    assert said(lambda: product(memory, 64, 64)) in ("", "damaged")


def test_numbers_that_no_matrix_has_are_refused():
    if usable():
        count = library().functions.ecoflap_packed_bytes
        assert count(9, 4, 4, 4) < 0
        assert count(0, -1, 4, 0) < 0
        assert count(0, 4, 4, 17) < 0
        assert count(0, 1 << 40, 1 << 40, 0) < 0
    with pytest.raises(KernelError, match="no 16 rows from 3"):
        unpack(pack_dense(torch.ones(64, 32)), 3, 16)


def test_sizes_beyond_32_bits_are_counted():
    shape = Shape(torch.float32, 1 << 17, 1 << 15, 1 << 31)
    expected = 64 + 8 * ((1 << 13) + 1) + 56 + (1 << 32) // 8 + (1 << 33) + 64
    assert shape.nbytes == expected
    if usable():
        assert library().functions.ecoflap_packed_bytes(0, 1 << 17, 1 << 15, 1 << 31) == expected


def test_numpy_refuses_a_damaged_matrix():
    weight = pruned(40, 70, 0.5, torch.bfloat16)
    packed = packed_by_numpy(weight)
    packed[shape_for(weight).masks_at] ^= 1
    with pytest.raises(KernelError, match="masks do not fit"):
        order.read_rows(packed, 0, 40)
    assert np.isfinite(order.read_rows(packed_by_numpy(weight), 16, 16).float().numpy()).all()
