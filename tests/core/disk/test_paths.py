"""Tests what becomes of a path as somebody wrote it."""

from pathlib import Path

import pytest

import ecoflap
import ecoflap.onnx
import ecoflap.openvino
import ecoflap.torchscript
from ecoflap.core.disk.paths import PathError, from_here

TAKE_A_PATH = {
    "load_model": ecoflap.load_model,
    "load_masks": ecoflap.load_masks,
    "load_packed": ecoflap.load_packed,
    "read_report": ecoflap.read_report,
    "export_run": lambda path: ecoflap.export_run(path, "safetensors"),
    "onnx.load_session": ecoflap.onnx.load_session,
    "onnx.densify": lambda path: ecoflap.onnx.densify(path, "dense.onnx"),
    "openvino.compile_model": ecoflap.openvino.compile_model,
    "torchscript.load": ecoflap.torchscript.load,
}
NEEDED = {"onnx.load_session": "onnxruntime", "onnx.densify": "onnx", "openvino.compile_model": "openvino"}


@pytest.fixture(params=TAKE_A_PATH)
def call(request, monkeypatch, tmp_path):
    """Gives a public function that takes the path of a file or folder, where the home directory is an empty one."""
    if request.param in NEEDED:
        pytest.importorskip(NEEDED[request.param])
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return TAKE_A_PATH[request.param]


def test_a_tilde_is_the_home_directory_wherever_a_path_is_given(call, tmp_path):
    with pytest.raises(ecoflap.EcoflapError, match="nothing") as refused:
        call("~/nothing")
    assert str(tmp_path / "home" / "nothing") in str(refused.value)


def test_the_home_of_nobody_is_refused_wherever_a_path_is_given(call):
    with pytest.raises(PathError, match="'~nobody-at-all/a' begins with a user's home, and there is no such user"):
        call("~nobody-at-all/a")


def test_a_relative_path_begins_where_one_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert from_here("b") == from_here(Path("b")) == tmp_path / "b"


def test_what_a_link_leads_to_decides_what_lies_above_it(monkeypatch, tmp_path):
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    monkeypatch.chdir(tmp_path)
    assert from_here("link/../x").resolve() == tmp_path / "far" / "x"


def test_a_recipe_and_a_run_folder_may_lie_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("version: 1\nsparsity: 2\n")
    with pytest.raises(ecoflap.EcoflapError) as refused:
        ecoflap.run("~/mine.yaml", folder="~/run")
    assert f"{tmp_path / 'mine.yaml'}:2" in str(refused.value)
