"""Compiling a file for OpenVINO: the rate that it is asked for, the warning where that buys nothing, and mistakes."""

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.sealing.sums import write_sums

ov = pytest.importorskip("openvino")

import ecoflap.openvino as loader  # noqa: E402
from ecoflap.openvino import compile_model  # noqa: E402

RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"


def saved(folder, sparsity=None):
    """y = W x, as the exporter writes it."""
    from openvino import opset13 as op

    weight = np.arange(64 * 64, dtype=np.int64).reshape(64, 64) % 5 - 2
    x = op.parameter([-1, 64], np.float32, name="x")
    stored = op.multiply(op.convert(op.constant(weight.astype(np.int8)), np.float32), op.constant(np.float32(0.5)))
    model = ov.Model([op.result(op.matmul(x, stored, False, True))], [x], "view")
    if sparsity is not None:
        model.set_rt_info(sparsity, ["ecoflap", "sparsity"])
    ov.save_model(model, folder / "view.xml", compress_to_fp16=False)
    return folder / "view.xml", weight * 0.5


def amx(monkeypatch, has):
    monkeypatch.setattr(loader, "has_amx", lambda: has)


@pytest.mark.parametrize("has", [True, None])
def test_it_asks_for_what_the_file_says(tmp_path, monkeypatch, has):
    amx(monkeypatch, has)
    path, weight = saved(tmp_path, "0.4925")
    compiled = compile_model(path, config={"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    assert isinstance(compiled, ov.CompiledModel)
    assert float(compiled.get_property(RATE)) == pytest.approx(0.4925)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert np.allclose(compiled({"x": x})[0], x @ weight.T, atol=1e-4)


def test_it_says_where_nothing_is_gained(tmp_path, monkeypatch):
    amx(monkeypatch, False)
    path, _ = saved(tmp_path, "0.5")
    with pytest.warns(UserWarning, match=r"view\.xml: this CPU has no AMX"):
        compiled = compile_model(str(path))
    assert float(compiled.get_property(RATE)) == 0.5


def test_what_a_user_sets_goes_before(tmp_path, monkeypatch):
    amx(monkeypatch, True)
    path, _ = saved(tmp_path, "0.5")
    assert float(compile_model(path, config={RATE: "1.0"}).get_property(RATE)) == 1


def test_a_property_that_openvino_does_not_know_is_told_in_a_sentence(tmp_path, monkeypatch):
    amx(monkeypatch, True)
    path, _ = saved(tmp_path, "0.5")
    with pytest.raises(EcoflapError, match=r"does not compile it: .*FOO[^\n]*\. It was given config=\{'FOO': 1\}\.$"):
        compile_model(path, config={"FOO": 1})


def test_any_other_model_is_compiled_as_it_is(tmp_path, monkeypatch):
    amx(monkeypatch, False)
    path, _ = saved(tmp_path)
    assert float(compile_model(path).get_property(RATE)) == 1  # OpenVINO's own, which packs nothing


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ("flags\t: fpu avx512f amx_bf16 amx_tile amx_int8\n", "x86_64", True),
        ("flags\t: fpu avx512f\nmodel name: amx_int8s\n", "x86_64", False),
        (None, "AMD64", None),
        ("flags\t: fpu amx_int8\n", "aarch64", False),
    ],
)
def test_amx_is_seen_by_the_flags_of_the_cpu(tmp_path, monkeypatch, flags, machine, expected):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(flags)
    monkeypatch.setattr(loader, "_FLAGS", file)
    monkeypatch.setattr(loader.platform, "machine", lambda: machine)
    assert loader.has_amx() is expected


@pytest.mark.parametrize("said", ["much", "1.5", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused(tmp_path, said):
    path, _ = saved(tmp_path, said)
    with pytest.raises(FormatError, match=rf"view\.xml: it says that '{said}' of its weights are zero"):
        compile_model(path)


def test_files_are_held_to_the_list_that_lies_with_them(tmp_path, monkeypatch):
    amx(monkeypatch, True)
    path, weight = saved(tmp_path, "0.5")
    write_sums(tmp_path)
    (tmp_path / "mine.txt").write_text("what else is there is not looked at")
    compiled = compile_model(path)
    x = np.ones((1, 64), np.float32)
    assert np.allclose(compiled({"x": x})[0], x @ weight.T, atol=0.5)
    data = bytearray((tmp_path / "view.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "view.bin").write_bytes(data)
    with pytest.raises(FormatError, match=r"view\.bin is not what was written: its SHA-256 is .* Export it again\."):
        compile_model(path)


def test_files_that_are_missing_or_damaged_are_told(tmp_path):
    path, _ = saved(tmp_path, "0.5")
    with pytest.raises(FormatError, match=r"none\.xml: there is no such file\. Give the path of an \.xml"):
        compile_model(tmp_path / "none.xml")
    data = (tmp_path / "view.bin").read_bytes()
    (tmp_path / "view.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match=r"view\.xml: OpenVINO cannot read it: "):
        compile_model(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(FormatError, match=r"view\.xml: OpenVINO cannot read it: "):
        compile_model(path)
    with pytest.raises(FormatError, match=rf"{tmp_path} is a folder: name the file in it .*, of {path}\.$"):
        compile_model(tmp_path)
    (tmp_path / "view.bin").unlink()
    with pytest.raises(FormatError, match=r"view\.bin: there is no such file"):
        compile_model(path)


def test_a_missing_library_is_named():
    code = (
        "import sys; sys.modules['openvino'] = None\nfrom ecoflap.openvino import compile_model\ncompile_model('a.xml')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert re.search(r"EcoflapError: openvino cannot be imported .* pip install 'ecoflap\[openvino\]'", told)


def test_it_needs_no_torch(tmp_path):
    path, _ = saved(tmp_path, "0.5")
    light = "import sys, warnings, ecoflap.openvino\nassert not {'openvino', 'torch'} & set(sys.modules)"
    run = "ecoflap.openvino.compile_model(sys.argv[1])\nassert 'torch' not in sys.modules"
    code = f"{light}\nwarnings.simplefilter('ignore')\n{run}"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_no_other_warning_comes(tmp_path, monkeypatch):
    amx(monkeypatch, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_model(saved(tmp_path, "0.5")[0])
