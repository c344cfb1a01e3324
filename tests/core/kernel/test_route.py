"""Which way products are computed: the fastest that there is, or what ``ECOFLAP_KERNEL`` says."""

import pytest
import torch

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import library as libraries
from ecoflap.core.kernel import matrix, route
from ecoflap.core.kernel.matrix import pack_dense, unpack
from kernels import assert_right, library, numbers, pruned, usable

needs_library = pytest.mark.skipif(not usable(), reason="there is no library of kernels here")


@pytest.fixture
def no_library(monkeypatch, take_path):
    """As where ecoflap was installed without a compiler."""
    take_path()
    for module in (route, matrix):
        monkeypatch.setattr(module, "opened", lambda: "there is no library here")


@needs_library
def test_the_fastest_path_is_taken(take_path):
    take_path()
    assert route.route().name == usable()[0]
    assert route.route().batch(torch.float32) > 0
    assert route.route().batch(torch.float64) == 0


@needs_library
@pytest.mark.parametrize("name", usable())
def test_a_path_is_forced(name, take_path):
    take_path(name)
    assert route.route().name == name
    assert route.route().why == "ECOFLAP_KERNEL says so"


@needs_library
def test_torch_is_forced(take_path):
    take_path("torch")
    taken = route.route()
    assert (taken.name, taken.batch(torch.bfloat16)) == ("torch", 0)
    assert "not fast" in taken.why


@needs_library
def test_a_path_that_is_not_known_is_refused(take_path):
    take_path("avx521")
    with pytest.raises(KernelError, match=r"no path named 'avx521'\. Did you mean 'avx512'\? Known: amx, avx2"):
        route.route()


@needs_library
def test_a_path_that_this_cpu_lacks_is_refused(take_path):
    lacking = [path for path in library().paths() if path.lacks]
    if not lacking:
        pytest.skip("this CPU has every path")
    take_path(lacking[0].name)
    with pytest.raises(KernelError, match=rf"{lacking[0].name}: .*lacks it|without it.*Here it may be .*portable"):
        route.route()


def test_without_a_library_torch_multiplies(no_library):
    taken = route.route()
    assert (taken.library, taken.name) == (None, "torch")
    assert taken.why.startswith("there is no library here. Until then each panel of rows is decoded")


def test_without_a_library_no_path_can_be_forced(no_library, take_path):
    take_path("avx2")
    with pytest.raises(KernelError, match=r"ECOFLAP_KERNEL=avx2: there is no library here\. Unset it"):
        route.route()


@pytest.mark.parametrize("dtype", libraries.TYPES, ids=str)
def test_without_a_library_all_is_right(no_library, dtype, monkeypatch):
    monkeypatch.setattr("ecoflap.core.kernel.packed_linear.PANEL", 5000)
    weight, bias = pruned(70, 129, 0.5, dtype), numbers(70, dtype=dtype, seed=2)
    x = numbers(2, 3, 129, dtype=dtype)
    packed = pack_dense(weight)
    y = torch.ops.ecoflap.packed_linear(x, packed, bias, 70)
    assert y.shape == (2, 3, 70)
    assert torch.equal(unpack(packed), weight)
    allowed = {torch.float32: 1e-5, torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]
    assert torch.allclose(y.double(), x.double() @ weight.double().T + bias.double(), atol=allowed)


@pytest.fixture
def opened_anew():
    libraries.opened.cache_clear()
    yield libraries.opened
    libraries.opened.cache_clear()


def test_what_cannot_be_opened_is_said(monkeypatch, tmp_path, opened_anew):
    monkeypatch.setattr(libraries, "FILE", tmp_path / "missing.so")
    assert "is not there: ecoflap was built without a compiler" in opened_anew()
    (tmp_path / "foreign.so").write_bytes(b"of another CPU")
    monkeypatch.setattr(libraries, "FILE", tmp_path / "foreign.so")
    opened_anew.cache_clear()
    assert "cannot be used here" in opened_anew()


def test_a_product_is_right_by_default():
    weight, x = pruned(70, 129, 0.5, torch.float32), numbers(4, 129, dtype=torch.float32)
    assert_right(torch.ops.ecoflap.packed_linear(x, pack_dense(weight), None, 70), x, weight)
