"""Every path of the library gives the product, within rounding, whatever the shapes, masks and strides are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import pack_dense, pack_rows, unpack
from ecoflap.core.kernel.order import Shape
from kernels import ROUNDING, assert_right, exact, library, numbers, paths, pruned, usable

pytestmark = pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
types = pytest.mark.parametrize("dtype", TYPES, ids=str)


def multiplied(name, x, weight, bias=None, threads=1):
    """The product by a path itself, however large the batch."""
    found = library()
    (number,) = [path.number for path in found.paths() if path.name == name]
    packed, y = pack_dense(weight), x.new_empty(len(x), len(weight))
    matrix = packed.data_ptr(), len(packed), TYPES[weight.dtype], *weight.shape
    rows = x.data_ptr(), len(x), x.stride(0), None if bias is None else bias.data_ptr(), y.data_ptr()
    found.call("packed_linear", number, *matrix, *rows, threads)
    return y


@types
@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize(
    ("outputs", "inputs", "batch", "sparsity"),
    [
        (16, 32, 1, 0.5),
        (1, 1, 1, 0.0),
        (17, 33, 2, 0.5),
        (5, 200, 3, 0.7),
        (48, 64, 33, 0.0),
        (48, 64, 7, 1.0),
        (130, 257, 40, 0.6),
        (300, 2600, 130, 0.5),
        (300, 2624, 97, 0.0),
        (0, 5, 2, 0.5),
        (5, 0, 2, 0.5),
        (5, 5, 0, 0.5),
    ],
)
def test_a_path_gives_the_product(path, dtype, outputs, inputs, batch, sparsity):
    weight, bias = pruned(outputs, inputs, sparsity, dtype), numbers(outputs, dtype=dtype, seed=2)
    x = numbers(batch, inputs, dtype=dtype)
    assert_right(multiplied(path, x, weight), x, weight)
    assert_right(multiplied(path, x, weight, bias), x, weight, bias)


@settings(max_examples=60)
@given(
    st.integers(0, 70),
    st.integers(0, 140),
    st.integers(0, 36),
    st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    st.sampled_from(list(TYPES)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_all_paths_agree(outputs, inputs, batch, sparsity, dtype, threads, gap, has_bias, seed):
    weight = pruned(outputs, inputs, sparsity, dtype, seed)
    x = numbers(batch, inputs + gap, dtype=dtype, seed=seed + 1)[:, :inputs]
    bias = numbers(outputs, dtype=dtype, seed=seed + 2) if has_bias else None
    if outputs:
        weight[seed % outputs] = 0
    for path in usable():
        assert_right(multiplied(path, x, weight, bias, threads), x, weight, bias)


@types
@pytest.mark.parametrize("path", paths())
def test_it_is_as_near_as_torch_comes(path, dtype):
    """Over 2048 sums of a width that layers have: of shorter ones a torch that adds in more chains may come nearer."""
    weight, x = pruned(256, 4096, 0.5, dtype), numbers(8, 4096, dtype=dtype)
    expected = exact(x, weight)
    ours, theirs = (
        (y.double() - expected).square().mean().sqrt()
        for y in (multiplied(path, x, weight), torch.nn.functional.linear(x, weight))
    )
    assert ours <= theirs + ROUNDING[dtype] * expected.square().mean().sqrt()


@types
@pytest.mark.parametrize("path", paths())
def test_many_long_rows_are_multiplied_in_parts(path, dtype):
    """Of so long rows 64 fit a core's cache: the rest comes after them, the last part less than a group."""
    weight, wide = pruned(20, 20_000, 0.6, dtype), numbers(137, 20_010, dtype=dtype)
    x, bias = wide[:, :20_000], numbers(20, dtype=dtype)
    assert_right(multiplied(path, x, weight, bias), x, weight, bias)


@types
@pytest.mark.parametrize("path", paths())
def test_rows_may_lie_apart(path, dtype):
    weight, wide = pruned(20, 40, 0.5, dtype), numbers(6, 50, dtype=dtype)
    x = wide[:, 3:43]
    assert_right(multiplied(path, x, weight), x, weight)


@types
@pytest.mark.parametrize("path", paths())
def test_what_lies_behind_the_last_input_is_not_read(path, dtype):
    weight, wide = pruned(20, 40, 0.5, dtype), numbers(5, 64, dtype=dtype)
    wide[:, 40:] = torch.nan
    for x in (wide[:, :40], wide[:1, :40]):
        assert_right(multiplied(path, x, weight), x, weight)


@types
@pytest.mark.parametrize("path", paths())
def test_infinities_and_no_numbers_stay_where_they_are(path, dtype):
    weight, x = pruned(20, 40, 0.5, dtype), numbers(3, 40, dtype=dtype)
    weight[3, 4], weight[7, 5] = torch.inf, torch.nan
    y = multiplied(path, x, weight)
    assert torch.equal(y.isfinite().all(dim=0), weight.isfinite().all(dim=1))
    assert bool(y[:, 7].isnan().all())
    assert torch.equal(y[:, 3], x[:, 4].sign() * torch.inf)


@pytest.mark.parametrize("path", paths())
def test_numbers_too_large_for_a_half_are_infinite(path):
    weight, x = torch.full((16, 32), 200.0).half(), torch.full((2, 32), 30.0).half()
    assert bool((multiplied(path, x, weight) == torch.inf).all())
    small = torch.full((16, 32), 2.0**-20).half()
    assert_right(multiplied(path, (x / 1024).half(), small), (x / 1024).half(), small)


@types
def test_any_number_of_threads_gives_the_same(dtype):
    weight, x = pruned(1000, 300, 0.5, dtype), numbers(9, 300, dtype=dtype)
    for path in usable():
        first, *others = (multiplied(path, x, weight, threads=threads) for threads in (1, 2, 3, 7))
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.slow
def test_more_weights_than_32_bits_number():
    """The first and the last of eight inputs are kept here and there, and so are the last of all."""
    outputs, inputs = (1 << 16) + 17, (1 << 15) + 24
    assert outputs * inputs > 1 << 31
    generator = torch.Generator().manual_seed(0)
    eights = torch.randint(outputs * inputs // 8, (200_000,), generator=generator)
    eights = torch.cat([eights, torch.tensor([outputs * inputs // 8 - 1])]).unique()
    mask = torch.zeros(outputs * inputs // 8, dtype=torch.uint8)
    mask[eights] = 0b10000001
    kept = torch.stack([8 * eights, 8 * eights + 7], 1).flatten()
    values, row, column = torch.randn(len(kept), generator=generator), kept // inputs, kept % inputs
    shape = Shape(torch.float32, outputs, inputs, len(kept))
    packed = torch.empty(shape.nbytes, dtype=torch.uint8)
    pack_rows(packed, shape, mask, values)

    x = numbers(2, inputs, dtype=torch.float32)
    products = x.double()[:, column] * values.double()
    expected = x.new_zeros(2, outputs, dtype=torch.float64).index_add(1, row, products)
    y = torch.ops.ecoflap.packed_linear(x, packed, None, outputs)
    assert torch.allclose(y.double(), expected, rtol=0, atol=1e-5)

    first, last = outputs - 17, row >= outputs - 17
    decoded = torch.zeros(17, inputs)
    decoded[row[last] - first, column[last]] = values[last]
    assert bool(decoded[-1, -1])
    assert torch.equal(unpack(packed, first, 17), decoded)


@types
@pytest.mark.parametrize("path", paths())
def test_a_path_decodes_every_bit(path, dtype, take_path):
    take_path(path)
    weight = pruned(70, 129, 0.5, dtype)
    weight[0, :4] = torch.tensor([-torch.inf, torch.nan, torch.inf, 1e-7])
    integers = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    packed = pack_dense(weight)
    assert torch.equal(unpack(packed).view(integers), weight.view(integers))
    assert torch.equal(unpack(packed, 48, 22).view(integers), weight[48:].view(integers))
    assert torch.equal(unpack(packed, 16, 5).view(integers), weight[16:21].view(integers))


def test_a_path_that_there_is_not_is_refused():
    packed, found = pack_dense(pruned(16, 32, 0.5, torch.float32)), library()
    x, y = torch.zeros(1, 32), torch.zeros(1, 16)
    with pytest.raises(KernelError, match="no path of this number"):
        found.call("packed_linear", 99, packed.data_ptr(), len(packed), 0, 16, 32, x.data_ptr(), 1, 32, None,
                   y.data_ptr(), 1)  # fmt: skip
    for path in found.paths():
        if path.lacks:
            with pytest.raises(KernelError, match=f"the path {path.name} needs .*, which this"):
                found.call("unpack", path.number, packed.data_ptr(), len(packed), 0, 16, 32, 0, 16, y.data_ptr(), 1)


def test_an_address_of_nothing_is_refused():
    """Only another program than ours can give one."""
    weight, x = pruned(3, 5, 0.5, torch.float32), numbers(2, 5, dtype=torch.float32)
    packed, found = pack_dense(weight), library()
    (path,) = [path.number for path in found.paths() if path.name == "portable"]
    matrix, kept = (packed.data_ptr(), len(packed), TYPES[torch.float32], 3, 5), int(weight.count_nonzero())
    for call in (
        lambda: found.call("pack_dense", *matrix, None, kept),
        lambda: found.call("pack_rows", *matrix, None, weight.data_ptr(), kept),
        lambda: found.call("pack_rows", *matrix, weight.data_ptr(), None, kept),
        lambda: found.call("unpack", path, *matrix, 0, 3, None, 1),
        lambda: found.call("packed_linear", path, *matrix, None, 2, 5, None, x.data_ptr(), 1),
    ):
        with pytest.raises(KernelError, match="nothing at the address that is to be read or written"):
            call()
        pack_dense(weight, packed)
