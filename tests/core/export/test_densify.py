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
