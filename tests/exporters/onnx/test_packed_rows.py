"""Rows of a packed matrix in ONNX, for an embedding that is the head too: each way of running it by plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_onnx import changed, operators_once_loaded, set_byte, sparse

from ecoflap.core.errors import EcoflapError, FormatError, KernelError
from ecoflap.core.kernel import library_file

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from ecoflap.exporters.onnx.decode import packed_in  # noqa: E402
from ecoflap.exporters.onnx.forms import rows  # noqa: E402
from ecoflap.exporters.onnx.forms.product import INT8  # noqa: E402
from ecoflap.exporters.onnx.products import encode, round_vocabulary  # noqa: E402
from ecoflap.exporters.onnx.scratch import in_memory  # noqa: E402
from ecoflap.exporters.onnx.tensors import Opened, opened  # noqa: E402
from ecoflap.onnx import densify, load_session  # noqa: E402

needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())
PARTS = {"w.transposed.values", "w.transposed.masks", "w.transposed.scales"}
IDS = [np.array(5), np.array([-1, 0, 16, 47, -48]), np.arange(12).reshape(3, 4) * 3, np.zeros((2, 0), np.int64)]


def looked_up(words, ids):
    """What an embedding whose rows are rounded gives, in plain numpy."""
    scales = np.abs(words).max(1) / np.float32(127)
    numbers = np.rint(words / np.where(scales, scales, 1).astype(np.float64)[:, None]) + 0.0  # whole numbers have no -0
    return (numbers.astype(np.float32) * scales[:, None])[ids]


def tied(words, ids_type="INT64", rank=2):
    """A model that looks rows of w up, and multiplies with it as a head does."""
    helper, kind = onnx.helper, getattr(onnx.TensorProto, ids_type)
    value, free = helper.make_tensor_value_info, [None] * rank
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["found"]),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["found", "t"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "tied",
        [value("ids", kind, free)],
        [value(name, onnx.TensorProto.FLOAT, [*free, None]) for name in ("found", "y")],
        [onnx.numpy_helper.from_array(words, "w")],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.serde.deserialize_model(proto)
    stored = round_vocabulary(model, model.graph.initializers["w"], "w", in_memory)
    return model, stored


def saved(tmp_path, words, **how):
    path = tmp_path / "tied.onnx"
    onnx.save(ir.to_proto(tied(words, **how)[0]), path)
    return path


def alone(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("ids", IDS, ids=lambda ids: str(ids.shape))
def test_the_function_looks_rows_up(ids):
    """As onnx itself runs it."""
    words = sparse((48, 33), seed=3)
    inputs = dict(zip(INT8.parts, encode(words.T, INT8), strict=True))
    found = ReferenceEvaluator(rows.proto(20)).run(None, {"ids": ids, **inputs}, {"sizes": [33, 48]})[0]
    assert found.tobytes() == looked_up(words, ids).tobytes()
    assert found.shape == (*ids.shape, 33)


def test_a_matrix_that_is_both_is_stored_once():
    words = sparse((48, 33), 0.6)
    model, (form, size) = tied(words)
    assert form == "packed_op int8"
    assert set(model.graph.initializers) == PARTS
    assert size == sum(value.const_value.nbytes for value in model.graph.initializers.values()) < 1.4 * words.size
    assert [node.op_type for node in model.graph] == ["PackedRowsInt8", "PackedLinearInt8"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (found,) = packed_in(Opened(ir.to_proto(model), None))
    assert (found.lookups, found.products) == ((0,), (1,))


@pytest.mark.parametrize("ids", IDS, ids=lambda ids: str(ids.shape))
def test_every_way_of_running_it_gives_the_same_rows(ids, tmp_path):
    words = sparse((48, 33), 0.5, seed=1)
    path, expected = saved(tmp_path, words, rank=ids.ndim), looked_up(words, ids)
    dense = densify(path, tmp_path / "dense.onnx")
    onnx.checker.check_model(onnx.load(dense), full_check=True)
    assert {one.name for one in onnx.load(dense).graph.initializer} == {"w.transposed"}
    ways = [alone(path), alone(dense), *([] if library_file.why_library_absent() else [load_session(path)])]
    for session in ways:
        found, y = session.run(None, {"ids": ids})
        assert found.tobytes() == expected.tobytes()
        assert found.shape == expected.shape
        product = expected.astype(np.float64) @ looked_up(words, np.arange(48)).T
        np.testing.assert_allclose(y, product, rtol=0, atol=1e-3 * np.abs(words).max() ** 2)


@pytest.mark.filterwarnings("ignore:.*matrices are decoded")
def test_without_kernels_it_is_decoded(tmp_path, monkeypatch):
    words, ids = sparse((48, 33), 0.5, seed=1), IDS[2]
    path = saved(tmp_path, words)
    monkeypatch.setattr("ecoflap.onnx.library_file.why_library_absent", lambda: "there is no library")
    assert load_session(path).run(["found"], {"ids": ids})[0].tobytes() == looked_up(words, ids).tobytes()


def test_the_matrix_is_unpacked_once_when_it_is_loaded(tmp_path):
    """Where no library is, by the function of the lookup and that of the product together."""
    loaded = operators_once_loaded(tied(sparse((48, 33)))[0], tmp_path)
    assert not {"CumSum", "BitwiseAnd", "PackedRowsInt8"} & set(loaded)
    assert loaded.count("Gather") == loaded.count("MatMul") == 1


@needs_library
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 80), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_kernels_look_rows_up_of_any_size(tmp_path_factory, outputs, inputs, sparsity, seed):
    words = sparse((outputs, inputs), sparsity, seed=seed)
    ids = np.random.default_rng(seed).integers(-outputs, outputs, (3, 5))
    session = load_session(saved(tmp_path_factory.mktemp("rows"), words))
    assert session.run(["found"], {"ids": ids})[0].tobytes() == looked_up(words, ids).tobytes()


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=needs_library)])
def test_numbers_of_32_bits(kernels, tmp_path):
    words, ids = sparse((48, 33)), np.array([[3, 40]], np.int32)
    path = saved(tmp_path, words, ids_type="INT32")
    session = load_session(path) if kernels else alone(path)
    assert session.run(["found"], {"ids": ids})[0].tobytes() == looked_up(words, ids).tobytes()


@needs_library
@pytest.mark.parametrize("wrong", [48, -49, 2**40])
def test_a_row_that_is_not_there_is_refused(wrong, tmp_path):
    session = load_session(saved(tmp_path, sparse((48, 33))))
    with pytest.raises(Exception, match=r"w\.transposed\.values: it has no row of a number that is asked for"):
        session.run(None, {"ids": np.array([[0, wrong]])})


@needs_library
def test_a_library_that_is_registered_already_is_told(tmp_path):
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_file.LIBRARY_FILE))
    with pytest.raises(KernelError, match=r"have the library of kernels already\. Give load_session options without"):
        load_session(saved(tmp_path, sparse((48, 33))), options=options)


def test_a_damaged_matrix_is_refused(tmp_path):
    path = saved(tmp_path, sparse((48, 33)))
    model = onnx.load(path)
    changed(model, "w.transposed.masks", set_byte(0, 0))
    with pytest.raises(FormatError, match=r"w\.transposed: its masks keep"):
        [one.check() for one in packed_in(Opened(model, path))]


def test_a_function_that_was_changed_is_refused(tmp_path):
    path = saved(tmp_path, sparse((48, 33)))
    model = onnx.load(path)
    function = next(one for one in model.functions if one.name == rows.FUNCTION)
    next(node for node in function.node if node.op_type == "Gather" and node.attribute).attribute[0].i = 0
    onnx.save(model, path)
    with pytest.raises(EcoflapError, match="the function PackedRowsInt8 is not one that this version"):
        packed_in(opened(path))
