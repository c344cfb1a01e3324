"""Views of models of an image and a text go through both exporters, whatever a plan does not refuse; read again."""

from pathlib import Path
from typing import Any

import pytest
from exported import half_pruned
from table import GENERIC_ROWS
from transformers_version import is_before

from ecoflap.adapters.generic.image_text_to_text import ImageTextToTextAdapter
from ecoflap.core.errors import ModelError
from ecoflap.exporters.onnx.exporter import Onnx
from ecoflap.exporters.torchscript.exporter import TorchScript

COMPOSITES = sorted(name for name, row in GENERIC_ROWS.items() if isinstance(row.adapter(), ImageTextToTextAdapter))


def exported(name: str, exporter: Any, folder: Path) -> list[str]:
    """Each file is compared with the model on two sizes as it is written."""
    written = exporter(half_pruned(name), folder)
    assert all(0 <= check.difference <= check.tolerance for check in written.checks)
    assert {tensor.form for tensor in written.tensors} <= {"bitmask", "dense"}
    return [file.stem for file in written.files]


@pytest.mark.skipif(is_before("4.52"), reason="its models look at numbers in Python, as a plan says")
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_torchscript_has_them_all(name: str, tmp_path: Path):
    assert exported(name, TorchScript(), tmp_path) == ["vision", "language", "all"]


@pytest.mark.slow
def test_onnx_has_a_llava_whole(tmp_path: Path):
    pytest.importorskip("onnxscript")
    assert exported("llava", Onnx(views=("all",)), tmp_path) == ["all"]


def test_onnx_has_what_sees_of_a_qwen(tmp_path: Path):
    pytest.importorskip("onnxscript")
    assert exported("qwen2_vl", Onnx(views=("vision",)), tmp_path) == ["vision"]


def test_onnx_takes_constants_that_torch_has_folded(tmp_path: Path):
    """They are messages of ONNX, of which no ``doc_string`` can be set."""
    pytest.importorskip("onnxscript")
    assert exported("kimi_k25", Onnx(views=("all",)), tmp_path) == ["all"]


@pytest.mark.slow
@pytest.mark.parametrize("exporter", [Onnx, TorchScript])
@pytest.mark.parametrize("name", COMPOSITES)
def test_what_is_not_refused_is_exported(name: str, exporter: Any, tmp_path: Path):
    row = GENERIC_ROWS[name]
    model, adapter = row.build(), row.adapter()
    views = [view.name for view in adapter.export_views(model)]  # type: ignore[attr-defined]
    refused = adapter.views_refused(model.to("meta"), exporter.__name__.lower())  # type: ignore[attr-defined]
    there = [view for view in views if view not in refused]
    if there:
        assert exported(name, exporter(views=tuple(there)), tmp_path) == there
    else:
        with pytest.raises(ModelError, match="no view of this model can be exported"):
            exported(name, exporter(), tmp_path)


@pytest.mark.slow
def test_what_is_refused_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ImageTextToTextAdapter, "views_refused", lambda *given: {})
    with pytest.raises(ModelError, match=r"view 'all': torch cannot export it to ONNX: GuardOnDataDependentSymNode"):
        exported("ovis2", Onnx(views=("all",)), tmp_path)
