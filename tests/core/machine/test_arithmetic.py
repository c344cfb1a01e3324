"""Types that a CPU has no products for are known."""

import subprocess
import sys

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


TF32 = """
import torch
from ecoflap.core.machine.arithmetic import whole_float32
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
{said}
try:
    with whole_float32():
        print({told})
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print({told})
"""
OLD = "matmul.allow_tf32, cudnn.allow_tf32"
NEW = "matmul.fp32_precision, cudnn.conv.fp32_precision"
SAID_NEW = "matmul.fp32_precision = 'tf32'; cudnn.conv.fp32_precision = 'tf32'; cudnn.rnn.fp32_precision = 'ieee'"


@pytest.mark.parametrize(
    ("said", "told", "expected"),
    [
        ("", OLD, ["False False", "False True"]),
        ("torch.set_float32_matmul_precision('high')", OLD, ["False False", "True True"]),
        pytest.param(SAID_NEW, NEW, ["ieee ieee", "tf32 tf32"], marks=pytest.mark.skipif(
            not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the old names alone"
        )),
    ],
)  # fmt: skip
def test_float32_is_whole_on_a_gpu_for_a_while(said, told, expected):
    """Whatever whoever calls has said; it is theirs again afterwards, also where something went wrong."""
    code = TF32.format(said=said, told=told)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == expected, done.stderr
