"""Files of whole models whose linear layers are multiplied packed: by torch, by plain files, and as files of a run."""

from collections import Counter

import numpy as np
import pytest
from exported import half_pruned, planned

from ecoflap.core.errors import KernelError, ModelError
from ecoflap.core.kernel import library_file
from ecoflap.exporters.onnx.exporter import Onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ecoflap.onnx import densify, load_session  # noqa: E402

ALONE, KERNELS = "onnxruntime", "onnxruntime with ecoflap's kernels"
needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())
MODELS = [
    ("llama", "decoder"),
    pytest.param("llama", "decoder_with_past", marks=pytest.mark.slow),
    pytest.param("t5", "encoder", marks=pytest.mark.slow),
    pytest.param("t5", "decoder", marks=pytest.mark.slow),
    pytest.param("llava", "all", marks=pytest.mark.slow),
]


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def outputs(one, view):
    """On the example that the file was not traced with."""
    return one.run(None, {name: tensor.numpy() for name, tensor in view.other.items()})


@needs_library
@pytest.mark.parametrize(("row", "name"), MODELS)
def test_a_model_is_as_in_torch_and_as_from_a_plain_file(row, name, tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir(), packed.mkdir()
    model = half_pruned(row)
    Onnx(views=(name,))(model, plain)
    written = Onnx(views=(name,), weights="packed_op")(model, packed)
    forms = Counter(tensor.form for tensor in written.tensors)
    assert forms["packed_op"] > 10
    assert set(forms) <= {"packed_op", "bitmask"}
    assert [check.runtime for check in written.checks] == [ALONE, KERNELS]
    assert all(check.difference <= check.tolerance for check in written.checks)
    (file,) = written.files
    (view,) = (view for view in model.adapter.export_views(model.model) if view.name == name)
    nodes = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert nodes["PackedLinear"] >= forms["packed_op"]

    expected = outputs(session(plain / file.name), view)
    for mine, other in zip(outputs(session(file), view), expected, strict=True):
        assert mine.tobytes() == other.tobytes()
    for mine, other in zip(outputs(load_session(file), view), expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())
    ordinary = outputs(session(densify(file, tmp_path / "dense.onnx")), view)
    for mine, other in zip(ordinary, expected, strict=True):
        assert mine.tobytes() == other.tobytes()


@needs_library
def test_weights_of_16_bits_are_stored_in_them(tmp_path):
    import torch

    model = half_pruned("vit")
    model.model.to(torch.bfloat16)
    written = Onnx(views=("vision",), weights="packed_op")(model, tmp_path)
    values = [one for one in onnx.load(written.files[0]).graph.initializer if one.name.endswith(".values")]
    assert {one.data_type for one in values} == {onnx.TensorProto.BFLOAT16}
    assert [check.runtime for check in written.checks] == [ALONE, KERNELS]
    assert "ecoflap.onnx.load_session registers" in written.notes[0]


def test_without_the_library_it_is_checked_as_it_is_run_then(tmp_path, monkeypatch):
    monkeypatch.setattr(library_file, "LIBRARY_FILE", tmp_path / "none.so")
    model = half_pruned("vit")
    exporter = Onnx(views=("vision",), weights="packed_op")
    (note,) = exporter.notes(planned(model.model, model.adapter))
    assert note.startswith("weights: packed_op: files are checked as onnxruntime runs them alone")
    assert "none.so is not there" in note
    written = exporter(model, tmp_path)
    assert [check.runtime for check in written.checks] == [ALONE]
    assert {tensor.form for tensor in written.tensors} == {"packed_op"}


def test_a_form_without_functions_is_refused():
    model = half_pruned("vit")
    exporter = Onnx(weights="packed_op", form="inline")
    (problem,) = exporter.problems(planned(model.model, model.adapter))
    assert "form: inline is for runtimes that know none. Use weights: bitmask" in problem
    for weights in ("coo", "dense"):
        (problem,) = Onnx(weights=weights, form="inline").problems(planned(model.model, model.adapter))
        assert problem.endswith(f"a way to unpack weights: bitmask; weights: {weights} has none. Take it out.")


def test_options_serve_one_session_only(tmp_path):
    (file,) = Onnx(views=("vision",), weights="bitmask")(half_pruned("vit"), tmp_path).files
    options = ort.SessionOptions()
    load_session(file, options=options)
    with pytest.raises(KernelError, match="Give load_session options of its own for each session"):
        load_session(file, options=options)


@needs_library
def test_a_file_that_the_kernels_compute_otherwise_is_not_kept(tmp_path, monkeypatch):
    def wrong(path):
        loaded = load_session(path)
        return type("Wrong", (), {"run": lambda self, names, inputs: [one + 1 for one in loaded.run(names, inputs)]})()

    monkeypatch.setattr("ecoflap.onnx.load_session", wrong)
    with pytest.raises(ModelError, match="in onnxruntime with ecoflap's kernels is up to"):
        Onnx(views=("vision",), weights="packed_op")(half_pruned("vit"), tmp_path)
    assert not list(tmp_path.iterdir())
