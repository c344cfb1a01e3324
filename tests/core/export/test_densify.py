"""Packed files are written dense where nothing stands."""

import pytest

from ecoflap.core.errors import ModelError
from ecoflap.core.export.densify import densify
from ecoflap.core.registry.registry import load_registry


def test_a_link_to_what_is_gone_is_there_too(tmp_path):
    file, target = tmp_path / "model.onnx", tmp_path / "dense.onnx"
    file.touch()
    target.symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"dense\.onnx is there already; name another, or say --overwrite"):
        densify(file, target, load_registry())
    assert target.is_symlink()


@pytest.mark.parametrize(("name", "target"), [("model.onnx", "d.safetensors"), ("m.packed.safetensors", "d.onnx")])
def test_a_target_with_another_kinds_ending_is_refused(name, target, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(
        ModelError, match=rf"{target} would be a \.\w+ file by another kind's name; name one with \.\w+$"
    ):
        densify(tmp_path / name, tmp_path / target, load_registry())
    assert not (tmp_path / target).exists()


def test_a_folder_is_asked_for_the_packed_file_in_it(tmp_path):
    with pytest.raises(ModelError, match=r"is a folder: name a packed file\. Known endings: .*\.onnx"):
        densify(tmp_path, tmp_path / "dense.onnx", load_registry())
    (tmp_path / "decoder.onnx").touch()
    with pytest.raises(ModelError, match=r"is a folder: name the packed file in it, .*decoder\.onnx$"):
        densify(tmp_path, tmp_path / "dense.onnx", load_registry())
