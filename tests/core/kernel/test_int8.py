"""int8: every path gives the sums that Python gives, to the last bit; and weights and x are rounded as is said."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.bits import pack_mask
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import matrix
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import cast, pack_dense, pack_rows, shape_for, unpack
from ecoflap.core.kernel.order import Shape, read_rows, shape_of, write_rows
from kernels import ROUNDING, library, numbers, paths, pruned, usable

KINDS = ("int8", "int8a8")
MOST = {"int8": 32767, "int8a8": 127}
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
kinds = pytest.mark.parametrize("values", KINDS)
needs_library = pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
every_path = pytest.mark.parametrize("path", paths())


def whole_weights(weight):
    """Whole numbers and scales, by numpy from what the header of the library says."""
    rows = weight.float().numpy()
    scales = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(scales[:, None] > 0, rows.astype(np.float64) / scales[:, None].astype(np.float64), 0)
    return np.rint(np.clip(times, -127, 127)).astype(np.int64), scales


def whole_rows(x, values):
    rows = x.float().numpy().astype(np.float64)
    scales = np.abs(rows).max(axis=1, initial=0) / MOST[values]
    with np.errstate(divide="ignore"):
        times = np.where(scales > 0, 1 / scales, 0)
    return np.rint(rows * times[:, None]).astype(np.int64), scales


def expected(x, weight, values, bias=None):
    """The exact sums in int64, then what is done with them in float64 and float32, in this order."""
    (w, w_scales), (rows, x_scales) = whole_weights(weight), whole_rows(x, values)
    sums = rows @ w.T
    y = (sums.astype(np.float64) * (x_scales[:, None] * w_scales[None, :].astype(np.float64))).astype(np.float32)
    y = torch.from_numpy(y) + (0 if bias is None else bias.float())
    return y.to(x.dtype)


def multiplied(path, x, packed, outputs, bias=None, threads=1):
    """The product by a path itself, however large the batch."""
    found = library()
    (number,) = [known.number for known in found.paths() if known.name == path]
    y = x.new_empty(len(x), outputs)
    taken = packed.data_ptr(), len(packed), TYPES[x.dtype], outputs, x.shape[1]
    rows = x.data_ptr(), len(x), x.stride(0), None if bias is None else bias.data_ptr(), y.data_ptr()
    found.call("packed_linear", number, *taken, *rows, threads)
    return y


def same(one, other):
    """Bit by bit, where both are numbers."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@needs_library
@settings(max_examples=150)
@given(
    st.integers(0, 70),
    st.integers(0, 140),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]),
    st.sampled_from(list(TYPES)),
    st.sampled_from(KINDS),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_every_path_gives_the_exact_product(outputs, inputs, batch, sparsity, dtype, values, threads, seed):
    weight, bias = pruned(outputs, inputs, sparsity, dtype, seed), numbers(outputs, dtype=dtype, seed=seed + 2)
    x = numbers(batch, inputs + seed % 7, dtype=dtype, seed=seed + 1)[:, :inputs] * 10.0 ** (seed % 5 - 2)
    if outputs and batch:
        weight[seed % outputs], x[seed % batch] = 0, x[seed % batch] * (seed % 2)
    packed = pack_dense(weight, values=values)
    for path in usable():
        assert torch.equal(multiplied(path, x, packed, outputs, threads=threads), expected(x, weight, values))
        assert torch.equal(multiplied(path, x, packed, outputs, bias), expected(x, weight, values, bias))


@every_path
@kinds
@pytest.mark.parametrize("inputs", [5000, *(pytest.param(one, marks=pytest.mark.slow) for one in (5024, 4096))])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_many_rows_give_the_exact_product(path, values, inputs, sparsity):
    """So many that a path for tiles has several bands of rows, panels of blocks and slices of columns."""
    weight, x = pruned(300, inputs, sparsity, torch.bfloat16), numbers(115, inputs, dtype=torch.bfloat16)
    packed, wanted = pack_dense(weight, values=values), expected(x, weight, values)
    for threads in (1, 2):
        assert torch.equal(multiplied(path, x, packed, 300, threads=threads), wanted)


@every_path
@kinds
@pytest.mark.parametrize("sparsity", [0.0, 0.3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_longest_sums_do_not_overflow(path, values, sparsity, sign):
    """All numbers as large as can be: beyond 2^31 after 516 columns in int16, and after 1024 in any lane."""
    inputs = 70_000
    weight = sign * pruned(17, inputs, sparsity, torch.float32).sign().abs()
    x = torch.full((3, inputs), 2.0)
    x[1] = -2
    y = multiplied(path, x, pack_dense(weight, values=values), 17)
    assert torch.equal(y, expected(x, weight, values))
    if sparsity == 0:
        assert torch.allclose(y, x @ weight.T)


@every_path
@kinds
@pytest.mark.parametrize("inputs", [65_535, 65_536, 65_537])
def test_sums_in_tiles_are_as_long_as_32_bits_hold(path, values, inputs):
    """All numbers as large as can be: of bytes a path for tiles adds 65,536 products at most."""
    weight = torch.full((17, inputs), 127.0)
    weight[3] = -127
    x = torch.full((9, inputs), 2.0)
    x[1] = -2
    assert torch.equal(multiplied(path, x, pack_dense(weight, values=values), 17), expected(x, weight, values))


@every_path
@kinds
def test_sums_are_exact_where_large_ones_cancel(path, values):
    """One is left of sums of billions: an accumulation that rounds anywhere would lose it."""
    weight = torch.full((16, 4096), 127.0)
    weight[:, 2048:] = -127
    weight[:, 0] = 126
    x = torch.full((2, 4096), float(MOST[values]))
    x[1] *= -1
    y = multiplied(path, x, pack_dense(weight, values=values), 16)
    left = -float(MOST[values])
    assert y.tolist() == [[left] * 16, [-left] * 16]


@every_path
@types
@kinds
def test_what_lies_behind_the_last_input_is_not_read(path, dtype, values):
    weight, wide = pruned(20, 37, 0.5, dtype), numbers(5, 64, dtype=dtype)
    wide[:, 37:] = torch.nan
    packed = pack_dense(weight, values=values)
    for x in (wide[:, :37], wide[:1, :37]):
        assert torch.equal(multiplied(path, x, packed, 20), expected(x, weight, values))


@every_path
@types
@kinds
def test_rows_with_infinities_and_no_numbers_are_as_in_a_dense_product(path, dtype, values):
    weight, x = pruned(20, 40, 0.3, dtype), numbers(7, 40, dtype=dtype)
    packed, bias = pack_dense(weight, values=values), numbers(20, dtype=dtype)
    x[1, 3], x[2, 5], x[3, :2], x[4, 39] = torch.nan, torch.inf, torch.tensor([torch.inf, -torch.inf]), -torch.inf
    y = multiplied(path, x, packed, 20, bias)
    dense = torch.nn.functional.linear(x.double(), unpack(packed).double(), bias.double())
    finite = [0, 5, 6]
    assert torch.equal(y[finite], expected(x[finite], weight, values, bias))
    broken = [1, 2, 3, 4]
    assert same(y[broken].double(), dense[broken])
    assert y[2].isinf().any()


@needs_library
@kinds
def test_any_number_of_threads_gives_the_same(values):
    weight, x = pruned(1000, 300, 0.5, torch.bfloat16), numbers(9, 300, dtype=torch.bfloat16)
    x[4, 5] = torch.inf
    packed = pack_dense(weight, values=values)
    for path in usable():
        first, *others = (multiplied(path, x, packed, 1000, threads=threads) for threads in (1, 2, 3, 7))
        assert all(same(first, other) for other in others)


@every_path
@types
@kinds
def test_rounding_x_costs_at_most_half_a_scale_for_each_input(path, dtype, values):
    """Beside the product of the same weights with x as it is, in float64."""
    weight, x = pruned(256, 1024, 0.5, dtype), numbers(8, 1024, dtype=dtype)
    packed = pack_dense(weight, values=values)
    weights = unpack(cast(packed, torch.float32)).double()
    exact = x.double() @ weights.T
    half = x.double().abs().amax(dim=1, keepdim=True) / MOST[values] / 2 * weights.abs().sum(dim=1)
    allowed = half * (1 + 2.0**-20) + 1.01 * ROUNDING[dtype] * (exact.abs() + half)
    assert bool(((multiplied(path, x, packed, 256).double() - exact).abs() <= allowed).all())


@settings(max_examples=60)
@given(
    st.integers(0, 70),
    st.integers(0, 140),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]),
    st.sampled_from(list(TYPES)),
    st.sampled_from(KINDS),
    st.sampled_from([1.0, 1e-3, 3e-7, 1e-38, 3e-45]),
)
def test_weights_are_rounded_and_decoded(outputs, inputs, sparsity, dtype, values, size):
    weight = (pruned(outputs, inputs, sparsity, torch.float32) * size).to(dtype)
    whole, scales = whole_weights(weight)
    decoded = (torch.from_numpy(whole).float() * torch.from_numpy(scales)[:, None]).to(dtype)
    shape = shape_for(weight, values)
    by_numpy = torch.empty(shape.nbytes, dtype=torch.uint8)
    kept = torch.ones_like(weight, dtype=torch.bool) if shape.keeps_all else weight != 0
    bits = pack_mask(kept) if outputs * inputs else torch.zeros(0, dtype=torch.uint8)
    write_rows(by_numpy, shape, bits, weight[kept])
    assert torch.equal(read_rows(by_numpy, 0, outputs), decoded)
    assert shape_of(by_numpy) == shape
    if usable():
        assert torch.equal(pack_dense(weight, values=values), by_numpy)
        rows = torch.empty_like(by_numpy)
        pack_rows(rows, shape, bits, weight[kept])
        assert torch.equal(rows, by_numpy)
        assert library().functions.ecoflap_packed_bytes(shape.number, outputs, inputs, shape.kept) == shape.nbytes
        library().call("check", rows.data_ptr(), len(rows))


@every_path
@types
def test_a_path_decodes(path, dtype, take_path):
    take_path(path)
    weight = pruned(70, 129, 0.5, dtype)
    packed = pack_dense(weight, values="int8")
    all_of_it = read_rows(packed, 0, 70)
    assert torch.equal(unpack(packed), all_of_it)
    assert torch.equal(unpack(packed, 48, 22), all_of_it[48:])
    assert torch.equal(unpack(packed, 16, 5), all_of_it[16:21])


def test_the_order_is_what_the_page_says():
    """By hand: two outputs, five inputs, by fours of columns; a weight that rounds to 0 stays kept."""
    weight = torch.tensor([[127.0, 0.0, 0.25, -3.0, 5.0], [0.0, 2.0, 0.0, 0.0, -254.0]])
    packed = pack_dense(weight, values="int8").numpy()
    shape = shape_for(torch.from_numpy(weight.numpy()), "int8")
    assert (shape.kept, shape.dtype, shape.itemsize) == (6, torch.float32, 1)
    masks = packed[shape.masks_at : shape.scales_at].view("<u8")
    assert masks.tolist() == [0b0010_1101, 0b0001_0001, *[0] * 6]
    scales = packed[shape.scales_at : shape.sums_at].view("<f4")
    assert scales.tolist() == [1.0, 2.0, *[0.0] * 14]
    sums = packed[shape.sums_at : shape.values_at].view("<i8")
    assert sums.tolist() == [127 + 0 - 3 + 5, 1 - 127, *[0] * 14]
    assert packed[shape.values_at : shape.values_at + 6].view("i1").tolist() == [127, 0, -3, 1, 5, -127]


def test_ties_go_to_the_even_number():
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    assert unpack(pack_dense(weight, values="int8")).tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_few_zeros_are_kept_so_that_masks_are_not_read():
    weight = torch.ones(16, 32)
    weight[3, 4] = 0
    assert shape_for(weight, "int8").keeps_all
    assert shape_for(weight).kept == 511
    assert shape_for(torch.ones(16, 32).masked_fill(torch.arange(32) < 4, 0), "int8").kept == 28 * 16
    assert unpack(pack_dense(weight, values="int8"))[3, 4] == 0


def test_bytes_are_a_bit_and_a_byte_for_what_is_kept():
    shape = Shape(torch.bfloat16, 4096, 4096, 4096 * 2048, "int8")
    assert shape.nbytes / (4096 * 4096) == pytest.approx(0.625 + 12 / 4096, abs=0.001)


@types
def test_it_is_cast_without_a_loss(dtype):
    weight = pruned(40, 70, 0.5, torch.float32)
    packed = pack_dense(weight, values="int8")
    again = cast(packed, dtype)
    assert shape_of(again).dtype == dtype
    assert torch.equal(cast(again, torch.float32), packed)
    assert torch.equal(unpack(again), unpack(packed).to(dtype))
    assert again.data_ptr() != packed.data_ptr()


@types
def test_what_was_decoded_is_packed_to_the_same_whole_numbers(dtype):
    weight = pruned(200, 300, 0.5, dtype)
    packed = pack_dense(weight, values="int8")
    again = pack_dense(unpack(packed), values="int8")
    whole, scales = whole_weights(weight)
    read, others = whole_weights(unpack(again))
    assert np.array_equal(whole, read)
    assert np.abs(others - scales).max() <= 2.0**-8 * scales.max()


@pytest.mark.parametrize("by", ["library", "numpy"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_refused(by, wrong, monkeypatch):
    if by == "numpy":
        monkeypatch.setattr(matrix, "opened", lambda: "there is none")
    elif not usable():
        pytest.skip("there is no library of kernels here")
    weight = pruned(20, 30, 0.5, torch.bfloat16)
    weight[3, 4] = wrong
    with pytest.raises(KernelError, match="not finite, and no whole number stands for it"):
        pack_dense(weight, values="int8")


@needs_library
@kinds
def test_damaged_scales_are_found(values):
    weight = pruned(20, 30, 0.5, torch.float32)
    packed, shape = pack_dense(weight, values=values), shape_for(weight, values)
    library().call("check", packed.data_ptr(), len(packed))
    for wrong in (np.nan, np.inf, -1.0):
        packed[shape.scales_at : shape.sums_at].numpy().view("<f4")[7] = wrong
        with pytest.raises(KernelError, match="its scales are no finite numbers"):
            library().call("check", packed.data_ptr(), len(packed))


@needs_library
@kinds
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_damaged_sums_are_found(values, sparsity):
    weight = pruned(32, 64, sparsity, torch.float32)
    packed, shape = pack_dense(weight, values=values), shape_for(weight, values)
    library().call("check", packed.data_ptr(), len(packed))
    packed[shape.sums_at : shape.values_at].numpy().view("<i8")[17] += 1
    with pytest.raises(KernelError, match="its sums are not those of its values"):
        library().call("check", packed.data_ptr(), len(packed))


@needs_library
@settings(max_examples=150)
@given(st.integers(0, 5_000), st.integers(0, 255), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from(KINDS))
def test_a_changed_byte_is_refused_or_gives_another_matrix(at, value, sparsity, values):
    packed = pack_dense(pruned(40, 70, sparsity, torch.float32), values=values)
    damaged, x = packed.clone(), numbers(2, 70, dtype=torch.float32)
    damaged[at % len(packed)] = value
    x[1, 3] = torch.inf
    for use in (lambda path: multiplied(path, x, damaged, 40), lambda path: unpack(damaged)):
        for path in usable():
            try:
                use(path)
            except KernelError as error:
                assert "damaged one" in str(error) or "another type or of other sizes" in str(error)  # noqa: PT017


@needs_library
@kinds
def test_masks_and_starts_that_contradict_each_other_are_refused(values):
    weight = pruned(64, 64, 0.5, torch.float32)
    packed, shape, x = pack_dense(weight, values=values), shape_for(weight, values), torch.zeros(2, 64)
    for at, value in ((shape.masks_at, 255), (shape.scales_at - 1, 255), (72, 7), (64, 1), (12, 9)):
        damaged = packed.clone()
        assert damaged[at] != value
        damaged[at] = value
        for path in usable():
            with pytest.raises(KernelError, match="damaged one"):
                multiplied(path, x, damaged, 64)
    with pytest.raises(KernelError, match="another type or of other sizes"):
        multiplied(usable()[0], x.bfloat16(), packed, 64)


@needs_library
def test_rows_longer_than_their_sums_are_refused():
    count = library().functions.ecoflap_packed_bytes
    assert count(3, 16, 1 << 31, 0) > 0
    assert count(3, 16, (1 << 31) + 1, 0) < 0
    assert count(0, 16, (1 << 31) + 1, 0) > 0
    assert count(9, 4, 4, 4) < 0
