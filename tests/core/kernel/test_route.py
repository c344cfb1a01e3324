"""Which way products are computed: the fastest that there is, or what ``ECOFLAP_KERNEL`` says."""

import re
import sys
from struct import pack_into

import pytest
import torch

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import library as libraries
from ecoflap.core.kernel import library_file, matrix, route
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
    monkeypatch.setattr(libraries, "LIBRARY_FILE", tmp_path / "missing.so")
    assert "is not there: ecoflap was built without a compiler" in opened_anew()
    (tmp_path / "foreign.so").write_bytes(b"of another CPU")
    monkeypatch.setattr(libraries, "LIBRARY_FILE", tmp_path / "foreign.so")
    opened_anew.cache_clear()
    assert "cannot be used here" in opened_anew()


def header(cpu, end):
    """Begins a library for Linux as linkers do: for a CPU of this number, with one section that ends there."""
    written = bytearray(64)
    written[:6] = b"\x7fELF\x02\x01"
    pack_into("<H", written, 18, cpu)
    pack_into("<Q", written, 40, end - 64)
    pack_into("<2H", written, 58, 64, 1)
    return bytes(written)


def test_a_library_for_another_cpu_or_that_is_cut_off_is_never_opened(monkeypatch, tmp_path, opened_anew):
    """The system would say that there is no such file, or end the process."""
    file = tmp_path / "other.so"
    monkeypatch.setattr(libraries, "LIBRARY_FILE", file)
    monkeypatch.setattr(library_file.platform, "machine", lambda: "x86_64")
    refused = {
        header(183, 200).ljust(200, b"\x00"): r"other\.so was compiled for aarch64, and this is x86_64\. Install",
        header(243, 200).ljust(200, b"\x00"): r"was compiled for a CPU of number 243, and this is x86_64",
        header(62, 201).ljust(200, b"\x00"): r"other\.so is cut off\. Install ecoflap again",
        header(62, 200)[:63]: "is cut off",
    }
    for written, said in refused.items():
        file.write_bytes(written)
        opened_anew.cache_clear()
        assert re.search(said, opened_anew())
    for written in (header(62, 200).ljust(200, b"\x00"), b"\xcf\xfa\xed\xfe as on macOS", b""):
        file.write_bytes(written)
        assert library_file.unfit(file) == ""
    monkeypatch.setattr(library_file.platform, "machine", lambda: "riscv64")  # ours may not know its number
    file.write_bytes(header(243, 200).ljust(200, b"\x00"))
    assert library_file.unfit(file) == ""
    assert "cannot be read" in library_file.unfit(tmp_path)


@needs_library
def test_a_library_of_another_version_is_not_used(monkeypatch, opened_anew):
    here = library_file.ABI
    monkeypatch.setattr(library_file, "ABI", here + 1)
    assert opened_anew().endswith(f"is of version {here}, and {here + 1} is needed. Install ecoflap again")


@needs_library
def test_the_library_that_is_here_fits(tmp_path):
    assert library_file.unfit(library_file.LIBRARY_FILE) == ""
    (tmp_path / "cut.so").write_bytes(library_file.LIBRARY_FILE.read_bytes()[:-1])
    if sys.platform == "linux":
        assert "cut off" in library_file.unfit(tmp_path / "cut.so")


@needs_library
def test_a_path_for_another_kind_of_cpu_is_one_that_this_cpu_lacks():
    (foreign,) = [path for path in library().paths() if path.name == ("avx2" if is_arm() else "neon")]
    assert foreign.lacks == f"this CPU lacks it: {foreign.needs}"


def is_arm():
    return library_file.platform.machine().lower() in ("aarch64", "arm64")


def test_a_product_is_right_by_default():
    weight, x = pruned(70, 129, 0.5, torch.float32), numbers(4, 129, dtype=torch.float32)
    assert_right(torch.ops.ecoflap.packed_linear(x, pack_dense(weight), None, 70), x, weight)
