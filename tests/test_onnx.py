"""A packed model loaded by ecoflap, by onnxruntime alone, and made an ordinary file: the same outputs, bit by bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_onnx import chain, damages, outputs, sparse, two_of_four

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.exporters.openvino.openvino_core import openvino_core

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
runtime = pytest.importorskip("onnxruntime")

from ecoflap.exporters.onnx import dense as onnx_dense  # noqa: E402
from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx.embedded import save_embedded  # noqa: E402
from ecoflap.exporters.onnx.forms.coo import to_coo  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.onnx import densify, load_session  # noqa: E402

CPU = ["CPUExecutionProvider"]
PATTERNS = {"b": Pattern(2, 4), "c": Pattern(2, 4)}


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


def dense_weights(dtype=np.float32):
    return {
        "a": sparse((13, 24), dtype=dtype),
        "left": sparse((24, 24), 0.0, seed=4),
        "b": two_of_four((24, 320), 0, dtype, seed=1),
        "c": two_of_four((320, 16), 1, dtype, seed=2),
        "bias": sparse((16,), 0.0, seed=5),
    }


def saved(folder, form="function", external=True, dtype=np.float32, store=torch.float16):
    """A packed file, and the same model dense."""
    weights = dense_weights(dtype)
    packed, dense = folder / "packed.onnx", folder / "original.onnx"
    ir.save(chain(weights), dense)
    names = {name: name for name in "abc"}
    model = chain(weights)
    if form == "coo":
        save_embedded(model, packed, to_coo(model, names)[1])
    else:
        pack = onnx_encoding.pack(model, names, Storage(form=form, values=store), PATTERNS)
        assert [one.form for one in pack] == ["bitmask", "2:4", "2:4"]
        ir.save(model, packed, external_data="packed.onnx.data" if external else None)
    return packed, dense


def plain(path):
    return runtime.InferenceSession(path, providers=CPU)


def same(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


FORMS = [("function", True), ("function", False), ("inline", True), ("inline", False), ("coo", False)]


@pytest.mark.parametrize(("form", "external"), FORMS)
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_a_session_gives_what_the_dense_model_gives(tmp_path, form, external, level):
    packed, dense = saved(tmp_path, form, external)
    expected = outputs(plain(dense))
    assert same(outputs(plain(packed)), expected)
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    session = load_session(packed, providers=CPU, options=options)
    assert same(outputs(session), expected)
    assert isinstance(session, runtime.InferenceSession)


@pytest.mark.parametrize("own", ["float16", "bfloat16"])
def test_weights_of_16_bits(tmp_path, own):
    import ml_dtypes

    packed, dense = saved(tmp_path, dtype=np.dtype(getattr(ml_dtypes, own, None) or own), store=None)
    assert same(outputs(load_session(packed, providers=CPU)), outputs(plain(dense)))


def test_it_leaves_no_node_that_unpacks(tmp_path):
    packed, _ = saved(tmp_path)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    load_session(packed, providers=CPU, options=options)
    nodes = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx", load_external_data=False).graph.node]
    assert nodes == ["MatMul", "MatMul", "MatMul", "MatMul", "Add"]


def test_a_session_outlives_what_it_was_loaded_from(tmp_path):
    """The weights are onnxruntime's own by then."""
    packed, dense = saved(tmp_path)
    expected = outputs(plain(dense))
    session = load_session(packed, providers=CPU)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    noise = [np.full((64, 64), 3.0) for _ in range(200)]
    assert same(outputs(session), expected)
    assert len(noise) == 200


def test_a_model_without_packed_weights_is_given_as_it_is(tmp_path):
    _, dense = saved(tmp_path)
    assert same(outputs(load_session(str(dense))), outputs(plain(dense)))


def test_it_may_be_loaded_from_any_folder(tmp_path, monkeypatch):
    _, dense = saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert same(outputs(load_session("packed.onnx")), outputs(plain(dense)))
    assert densify("packed.onnx", "dense.onnx").read_bytes()


def test_damage_is_refused_before_onnxruntime_sees_it(tmp_path):
    packed, _ = saved(tmp_path)
    data = tmp_path / "packed.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    for read in (load_session, lambda path: densify(path, tmp_path / "dense.onnx")):
        with pytest.raises(FormatError, match=r"packed\.onnx: .* is truncated"):
            read(packed)
    data.unlink()
    with pytest.raises(FormatError, match="which is not there"):
        load_session(packed)
    with pytest.raises(FormatError, match="there is no such file"):
        load_session(tmp_path / "none.onnx")
    (tmp_path / "empty").mkdir()
    for read in (load_session, lambda path: densify(path, tmp_path / "dense.onnx")):
        with pytest.raises(FormatError, match=rf"{tmp_path} is a folder: .* of \S*original\.onnx, {packed}\.$"):
            read(tmp_path)
        with pytest.raises(FormatError, match=r"empty is a folder: it holds no \.onnx file"):
            read(tmp_path / "empty")
    (tmp_path / "empty").rmdir()
    assert {file.name for file in tmp_path.iterdir()} == {"original.onnx", "packed.onnx"}


@pytest.mark.parametrize(("form", "external"), FORMS[:3])
def test_a_byte_that_was_changed_makes_no_error_of_anothers(tmp_path, form, external):
    packed, _ = saved(tmp_path, form, external)
    refused = 0
    for _ in damages(packed, 100):
        for read in (load_session, lambda path: densify(path, tmp_path / "dense.onnx")):
            try:
                read(packed)
            except FormatError as error:
                refused += str(packed) in str(error)
    assert refused > 20


def test_a_name_that_is_no_unicode_is_said(tmp_path):
    packed, _ = saved(tmp_path)
    packed.write_bytes(packed.read_bytes().replace(b"b.positions", b"b.po\xffitions"))
    for read in (load_session, lambda path: densify(path, tmp_path / "dense.onnx")):
        with pytest.raises(FormatError, match=r"packed\.onnx: it is damaged: a name in it is no Unicode\. Export"):
            read(packed)


def test_a_remark_that_is_no_unicode_is_passed_over(tmp_path):
    """As onnxruntime passes over it."""
    packed, _ = saved(tmp_path)
    expected = outputs(load_session(packed))
    proto = onnx.load(packed, load_external_data=False)
    proto.doc_string, proto.producer_name, proto.graph.node[0].doc_string = "remark 1", "remark 2", "remark 3"
    packed.write_bytes(proto.SerializeToString().replace(b"remark ", b"r\xe9mark "[:7]))
    assert same(outputs(load_session(packed)), expected)


def test_what_onnxruntime_does_not_take_is_said_to_be_damaged(tmp_path):
    packed, dense = saved(tmp_path)
    for file in (packed, dense):
        proto = onnx.load(file, load_external_data=False)
        proto.graph.node[-1].op_type = "Adder"
        file.write_bytes(proto.SerializeToString())
        with pytest.raises(FormatError, match=r"onnxruntime does not take it: .*Adder.*may be damaged"):
            load_session(file)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    packed, _ = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EcoflapError, match=r"onnxruntime cannot be imported .* pip install 'ecoflap\[onnx\]'"):
        load_session(packed)


STOCK = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
x = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {"x": x})[0])
assert not {name for name in sys.modules if name.partition(".")[0] in ("ecoflap", "torch", "onnx")}
"""


@pytest.mark.parametrize(("form", "external"), FORMS)
def test_onnxruntime_alone_runs_it(tmp_path, form, external):
    packed, dense = saved(tmp_path, form, external)
    x = np.random.default_rng(7).standard_normal((3, 13)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(packed), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", STOCK, *arguments], check=True, cwd=tmp_path)
    assert same(np.load(tmp_path / "y.npy"), outputs(plain(dense)))


def test_loading_takes_no_torch(tmp_path):
    packed, _ = saved(tmp_path)
    code = "import sys, ecoflap.onnx; ecoflap.onnx.load_session(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(packed)], check=True)
    light = "import sys, ecoflap.onnx; assert not {'onnx', 'onnxruntime', 'torch', 'ml_dtypes'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", light], check=True)


# An ordinary file


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("form", "external"), FORMS)
def test_an_ordinary_file(tmp_path, monkeypatch, form, external, large):
    packed, dense = saved(tmp_path, form, external)
    if large:
        monkeypatch.setattr(onnx_dense, "_EMBEDDED", 0)
    folder = tmp_path / "new"
    assert densify(packed, folder / "dense.onnx") == folder / "dense.onnx"
    names = {"dense.onnx", "dense.onnx.data"} if large else {"dense.onnx"}
    assert {file.name for file in folder.iterdir()} == names

    onnx.checker.check_model(folder / "dense.onnx", full_check=True)
    proto = onnx.load(folder / "dense.onnx")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert {name: array.tobytes() for name, array in weights.items()} == {
        name: array.tobytes() for name, array in dense_weights().items()
    }
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert not proto.functions
    assert not proto.graph.sparse_initializer
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "MatMul", "MatMul", "MatMul", "Add"]
    assert same(outputs(plain(folder / "dense.onnx")), outputs(plain(dense)))


@pytest.mark.parametrize("large", [False, True])
def test_16_bits_in_an_ordinary_file(tmp_path, monkeypatch, large):
    import ml_dtypes

    packed, _ = saved(tmp_path, dtype=np.dtype(ml_dtypes.bfloat16), store=None)
    if large:
        monkeypatch.setattr(onnx_dense, "_EMBEDDED", 0)
    proto = onnx.load(densify(packed, tmp_path / "dense.onnx"))
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert {tensors[name].data_type for name in "abc"} == {onnx.TensorProto.BFLOAT16}
    expected = dense_weights(np.dtype(ml_dtypes.bfloat16))
    assert all(tensors[name].raw_data == expected[name].tobytes() for name in "abc")


def test_tensors_of_other_kinds_stay_as_they_are(tmp_path, monkeypatch):
    packed, _ = saved(tmp_path, external=False)
    proto = onnx.load(packed)
    helper = onnx.helper
    extra = [
        helper.make_tensor("numbers", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("texts", onnx.TensorProto.STRING, [2], [b"one", b"two"]),
        onnx.TensorProto(name="four_bits", data_type=onnx.TensorProto.INT4, dims=[3], raw_data=b"\x21\x03"),
        onnx.TensorProto(name="empty", data_type=onnx.TensorProto.FLOAT, dims=[0], raw_data=b""),
        onnx.TensorProto(name="long", data_type=onnx.TensorProto.UINT4, dims=[4001], raw_data=bytes(2001)),
    ]
    proto.graph.initializer.extend(extra)
    packed.write_bytes(proto.SerializeToString())
    expected = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in extra}
    for limit in (10**9, 0):
        monkeypatch.setattr(onnx_dense, "_EMBEDDED", limit)
        found = onnx.load(densify(packed, tmp_path / f"dense{limit}.onnx")).graph.initializer
        arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in found}
        assert {name: arrays[name] for name in expected} == expected


def test_the_source_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_dense, "_EMBEDDED", 0)
    packed, _ = saved(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "alias.onnx").symlink_to(packed)
    for target in (packed, tmp_path / "alias.onnx", tmp_path / "packed.onnx.data"):
        with pytest.raises(EcoflapError, match="belongs to the model that is read"):
            densify(packed, target)
    (tmp_path / "alias.onnx").unlink()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("large", [False, True])
def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(onnx_dense, "_EMBEDDED", 0)
    packed, dense = saved(tmp_path)
    target = tmp_path / "dense.onnx"
    target.write_bytes(b"older")
    before = {file.name for file in tmp_path.iterdir()}
    data = tmp_path / "packed.onnx.data"
    whole = data.read_bytes()
    proto = onnx.load(packed, load_external_data=False)
    positions = next(tensor for tensor in proto.graph.initializer if tensor.name == "b.positions")
    start = next(int(entry.value) for entry in positions.external_data if entry.key == "offset")
    data.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
    with pytest.raises(FormatError, match="same position"):
        densify(packed, target)
    assert target.read_bytes() == b"older"
    assert {file.name for file in tmp_path.iterdir()} == before
    data.write_bytes(whole)
    densify(packed, target)
    assert same(outputs(plain(target)), outputs(plain(dense)))


def test_what_is_not_packed_is_said(tmp_path):
    _, dense = saved(tmp_path)
    with pytest.raises(FormatError, match="no weight in it is packed"):
        densify(dense, tmp_path / "dense.onnx")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    packed, _ = saved(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(RunError, match="you may not write there"):
        densify(packed, tmp_path / "closed" / "dense.onnx")


def test_a_target_whose_folder_is_a_file(tmp_path):
    packed, dense = saved(tmp_path)
    with pytest.raises(RunError, match="could not be written"):
        densify(packed, dense / "dense.onnx")


def test_other_runtimes_read_the_ordinary_file(tmp_path):
    pytest.importorskip("openvino")
    packed, dense = saved(tmp_path)
    x = np.random.default_rng(7).standard_normal((3, 13)).astype(np.float32)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    found = [
        openvino_core().compile_model(path, "CPU", hint)(x)[0] for path in (densify(packed, tmp_path / "d.onnx"), dense)
    ]
    assert same(*found)
