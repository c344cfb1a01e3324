"""Types that a CPU has no products for are known."""

import pytest
import torch

from ecoflap.core.machine.arithmetic import is_slow, lacks_eight_bits, slow_types


def test_it_is_what_onednn_says(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    assert is_slow(torch.bfloat16)
    assert not is_slow(torch.float16)
    assert not is_slow(torch.float32)
    assert slow_types() == ["bfloat16"]


def test_a_build_without_onednn_is_not_called_slow(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert slow_types() == []


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX2", reason="this CPU has more or less than AVX2")
def test_avx2_alone_has_no_products_in_bfloat16():
    assert is_slow(torch.bfloat16)


@pytest.mark.parametrize(
    ("told", "lacks"),
    [
        ("model name\t: A\nflags\t\t: fma avx2\n", True),
        ("flags\t\t: avx2 avx_vnni\n", False),
        ("flags\t\t: avx512f avx512_vnni\n", False),
        ("Features\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_what_lacks_sums_of_eight_bits_is_told_by_linux(told, lacks, tmp_path):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    assert lacks_eight_bits(tmp_path / "cpuinfo") == lacks
