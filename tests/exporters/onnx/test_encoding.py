"""Packed weights in ONNX: exact in numpy and in onnxruntime, small, and refused when they have been changed."""

from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_onnx import chain, outputs, sparse, two_of_four

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.exporters.openvino.openvino_core import openvino_core

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
runtime = pytest.importorskip("onnxruntime")

from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx import products as onnx_products  # noqa: E402
from ecoflap.exporters.onnx import tensors as onnx_tensors  # noqa: E402
from ecoflap.exporters.onnx.decode import packed_in, unpacked  # noqa: E402
from ecoflap.exporters.onnx.encoding import pack  # noqa: E402
from ecoflap.exporters.onnx.forms.coo import to_coo  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.exporters.onnx.tensors import Opened, opened  # noqa: E402

TWO_FOUR = {"w": Pattern(2, 4)}
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


def packed(matrices, patterns=MappingProxyType({}), **storage):
    """The packed model as a ModelProto, and what was said of it."""
    model = chain(matrices)
    stored = pack(model, {name: name for name in matrices}, Storage(**storage), patterns)
    return ir.to_proto(model), stored


def unpack_initializers(model):
    """Every packed weight of a file or of a ModelProto, dense, by its name in the graph."""
    source = opened(model) if isinstance(model, Path) else Opened(model, None)
    return unpacked(packed_in(source), np.zeros)


def session(proto, level="ORT_ENABLE_ALL", options=None):
    options = options or runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    return runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def equal(one, other):
    """Bit by bit."""
    unsigned = f"u{one.dtype.itemsize}"
    return one.dtype == other.dtype and one.shape == other.shape and (one.view(unsigned) == other.view(unsigned)).all()


@st.composite
def weights(draw):
    shape = tuple(draw(st.lists(st.integers(1, 19), min_size=1, max_size=3)))
    elements = draw(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, np.inf, np.nan, 6e-8]), min_size=1, max_size=7))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    return random.choice(np.array(elements, np.float32), shape).astype(draw(st.sampled_from(["f4", "f2", "f8"])))


@given(weights())
@example(np.zeros((3, 5), np.float32))
@example(np.ones((3, 5), np.float32))
@example(np.full((1, 1), -0.0, np.float32))
@example(np.full((1,), 2.0, np.float32))
@settings(max_examples=150)
def test_any_weight_reads_back(weight):
    for layout in ("function", "inline"):
        proto, (stored,) = packed({"w": weight}, form=layout)
        assert stored.form == "bitmask"
        # The zero of a pruned weight is positive.
        assert equal(unpack_initializers(proto)["w"], np.where(weight == 0, weight.dtype.type(0), weight))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 1), st.sampled_from(["f4", "f2"]), st.integers(0, 50))
@settings(max_examples=80)
def test_any_2_4_weight_reads_back(groups, others, axis, dtype, seed):
    shape = (4 * groups, others) if axis == 0 else (others, 4 * groups)
    weight = two_of_four(shape, axis, dtype, seed)
    # Groups of four may have less than two.
    weight[np.random.default_rng(seed).random(shape) < 0.3] = 0
    proto, (stored,) = packed({"w": weight}, patterns=TWO_FOUR)
    assert weight.size % 8 == 0 or stored.form == "bitmask"
    assert equal(unpack_initializers(proto)["w"], weight)


@pytest.mark.parametrize("store", STORED)
@pytest.mark.parametrize("own", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["function", "inline"])
def test_onnxruntime_gives_what_the_dense_model_gives(layout, own, store):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, own, None) or own)
    dense = {"a": sparse((13, 24)), "b": two_of_four((24, 32), 0, seed=1), "c": two_of_four((32, 16), 1, seed=2)}
    dense = {name: (weight * 64).clip(-250, 250).round().astype(dtype) for name, weight in dense.items()}
    patterns = {"b": Pattern(2, 4), "c": Pattern(2, 4)}
    proto, stored = packed(dense, patterns, form=layout, values=STORED[store])
    assert [one.form for one in stored] == ["bitmask", "2:4", "2:4"]
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    expected = outputs(session(ir.to_proto(chain(dense))))
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        assert equal(outputs(session(proto, level)), expected)
    assert all(equal(array, dense[name]) for name, array in unpack_initializers(proto).items())


@pytest.mark.parametrize("layout", ["function", "inline"])
def test_onnxruntime_unpacks_when_it_loads(tmp_path, layout):
    dense = {"a": sparse((13, 24)), "b": two_of_four((24, 32), 0, seed=1)}
    proto, _ = packed(dense, form=layout, values=torch.float16, patterns={"b": Pattern(2, 4)})
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session(proto, "ORT_ENABLE_BASIC", options)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["MatMul", "MatMul"]


@pytest.mark.parametrize("store", [torch.float16, torch.bfloat16])
def test_openvino_runs_inlined_nodes(store):
    pytest.importorskip("openvino")
    dense = {"a": sparse((13, 24)), "b": two_of_four((24, 32), 0, seed=1), "c": two_of_four((32, 16), 1, seed=2)}
    patterns = {"b": Pattern(2, 4), "c": Pattern(2, 4)}
    inline, stored = packed(dense, form="inline", values=store, patterns=patterns)
    assert [one.form for one in stored] == ["bitmask", "2:4", "2:4"]
    x = np.random.default_rng(0).standard_normal((3, 13)).astype(np.float32)
    found = []
    for proto in (inline, ir.to_proto(chain(dense))):
        core = openvino_core()
        compiled = core.compile_model(
            core.read_model(proto.SerializeToString(), b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found.append(compiled(x)[0])
    assert equal(*found)


def test_the_reference_of_onnx_agrees():
    from onnx.reference import ReferenceEvaluator

    dense = {"a": sparse((13, 24)), "b": two_of_four((24, 8), 0, seed=1)}
    proto, _ = packed(dense, patterns={"b": Pattern(2, 4)})
    x = np.eye(13, dtype=np.float32)
    expected = ReferenceEvaluator(ir.to_proto(chain(dense))).run(None, {"x": x})
    assert equal(ReferenceEvaluator(proto).run(None, {"x": x})[0], expected[0])


@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(("store", "width"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
@pytest.mark.parametrize("layout", ["function", "inline"])
def test_a_file_has_the_size_that_theory_gives(tmp_path, monkeypatch, size, sparsity, store, width, layout):
    monkeypatch.undo()
    weight = (sparse((size, size), sparsity) * 64).clip(-250, 250).round()
    proto, (stored,) = packed({"w": weight}, values=STORED[store], form=layout)
    exact = np.count_nonzero(weight == 0) / weight.size
    bound = ((1 - exact) + 1 / (8 * width)) * 1.02 * weight.size * width
    assert len(proto.SerializeToString()) <= bound
    assert stored.stored_bytes <= bound
    assert stored.dense_bytes == weight.size * width
    assert (stored.name, stored.shape, stored.nonzeros) == ("w", weight.shape, np.count_nonzero(weight))
    data = tmp_path / "packed.onnx.data"
    ir.save(ir.from_proto(proto), tmp_path / "packed.onnx", external_data=data.name)
    assert (tmp_path / "packed.onnx").stat().st_size + data.stat().st_size <= bound


def test_2_4_takes_as_much_as_a_bitmask():
    weight = two_of_four((512, 512), 0)
    _, (with_pattern,) = packed({"w": weight}, values=torch.float16, patterns=TWO_FOUR)
    _, (without,) = packed({"w": weight}, values=torch.float16)
    assert (with_pattern.form, without.form) == ("2:4", "bitmask")
    assert abs(with_pattern.stored_bytes - without.stored_bytes) <= 2


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (sparse((16, 16)), "three of four"),
        (two_of_four((12, 12), 0)[:, :11], "a size that no byte of positions divides"),
        (sparse((6, 2), 0.9), "no groups of four"),
        (np.zeros((16, 16), np.float32), "a bitmask is smaller"),
    ],
)
def test_a_weight_that_is_not_2_4_takes_a_bitmask(weight, reason):
    proto, (stored,) = packed({"w": weight}, patterns=TWO_FOUR)
    assert stored.form == "bitmask", reason
    assert equal(unpack_initializers(proto)["w"], weight)


def test_what_would_not_get_smaller_stays_dense(monkeypatch):
    monkeypatch.undo()
    dense = {"small": sparse((4, 128), 0.2), "full": sparse((256, 256), 0.0), "half": sparse((256, 64), 0.5)}
    proto, stored = packed(dense)
    assert [one.form for one in stored] == ["dense", "dense", "bitmask"]
    assert [one.stored_bytes == one.dense_bytes for one in stored] == [True, True, False]
    assert set(unpack_initializers(proto)) == {"half"}
    monkeypatch.setattr(onnx_products, "LARGEST", 100)
    assert [one.form for one in packed(dense)[1]] == ["dense"] * 3
    assert [one.form for one in packed(dense, weights="dense")[1]] == ["dense"] * 3


def test_an_input_with_a_default_stays_dense():
    model = chain({"w": sparse((16, 16))})
    model.graph.inputs.append(model.graph.initializers["w"])
    (stored,) = pack(model, {"w": "w"}, Storage())
    assert stored.form == "dense"


def test_the_graph_keeps_its_names_and_nothing_is_said_twice():
    model = chain({"a": sparse((16, 16)), "b": sparse((16, 16), seed=3)})
    stored = pack(model, {"a": "layer.weight", "b": "layer.weight"}, Storage())
    assert [one.name for one in stored] == ["a", "b"]
    proto = ir.to_proto(model)
    names = {"a.values", "a.mask", "a.shape", "b.values", "b.mask", "b.shape"}
    assert {one.name for one in proto.graph.initializer} == names
    assert [function.name for function in proto.functions] == ["UnpackBitmask"]
    assert {opset.domain: opset.version for opset in proto.opset_import} == {"": 20, "ecoflap": 1}
    assert not proto.metadata_props
    inline, _ = packed({"a": sparse((16, 16))}, form="inline")
    assert not inline.functions
    assert {opset.domain for opset in inline.opset_import} == {""}


@pytest.mark.parametrize(
    ("value", "store", "told"),
    [
        (1e-9, torch.float16, "1 weights become zero and 0 infinite"),
        (1e6, torch.float16, "0 weights become zero and 1 infinite"),
        (3.38e38, torch.bfloat16, None),
        (3.4028e38, torch.bfloat16, "1 infinite"),
        (1e-44, torch.bfloat16, "1 weights become zero"),
    ],
)
def test_a_cast_that_loses_a_weight_is_refused(value, store, told):
    weight = sparse((16, 16))
    weight[0, 0] = value
    if told is None:
        assert packed({"w": weight}, values=store)
        return
    model = chain({"w": weight})
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with pytest.raises(EcoflapError, match=f"a.b.weight: .*{told}.*lossy: true"):
        pack(model, {"w": "a.b.weight"}, Storage(values=store))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    proto, _ = packed({"w": weight}, values=store, lossy=True)
    assert unpack_initializers(proto)["w"][0, 0] in (0, np.inf)


def test_all_that_is_wrong_is_said_at_once():
    model = chain({"a": sparse((16, 16)), "b": sparse((16, 16)), "a.mask": sparse((16, 16))})
    with pytest.raises(EcoflapError) as caught:
        pack(model, {"a": "layer.a", "c": "layer.c"}, Storage())
    text = str(caught.value)
    assert "layer.c: the graph has no initializer named 'c'" in text
    assert "a.mask is in the way" in text
    assert set(model.graph.initializers) == {"a", "b", "a.mask"}


def test_what_cannot_be_packed_is_said():
    with pytest.raises(EcoflapError, match=r"only floats of 16, 32 or 64 bits"):
        packed({"w": np.ones((4, 4), np.int64)})
    with pytest.raises(EcoflapError, match=r"values cannot be stored as torch.int8. Known: float32"):
        packed({"w": sparse((16, 16))}, values=torch.int8)
    model = chain({"w": sparse((16, 16))})
    model.graph.opset_imports[""] = 17
    with pytest.raises(EcoflapError, match="take opset 18 or later; the model has 17"):
        pack(model, {"w": "w"}, Storage())
    model = chain({"w": sparse((16, 16))})
    model.graph.initializers["w"].const_value = None
    with pytest.raises(EcoflapError, match="has no data"):
        pack(model, {"w": "w"}, Storage())


# What has been changed is refused, before it is unpacked.


def part(proto, name):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def set_part(proto, name, array):
    part(proto, name).CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), name))


def array_of(proto, name):
    return onnx.numpy_helper.to_array(part(proto, name)).copy()


def flip(proto):
    mask = array_of(proto, "w.mask")
    mask[0] ^= 1
    set_part(proto, "w.mask", mask)


def tail(proto):
    mask = array_of(proto, "w.mask")
    mask[-1] |= 128
    set_part(proto, "w.mask", mask)


def fewer_values(proto):
    set_part(proto, "w.values", array_of(proto, "w.values")[:-1])


def truncated_values(proto):
    part(proto, "w.values").raw_data = part(proto, "w.values").raw_data[:-4]


def first_value(proto):
    values = array_of(proto, "w.values")
    values[0] = 1
    set_part(proto, "w.values", values)


def shape(*sizes):
    return lambda proto: set_part(proto, "w.shape", np.array(sizes, np.int64))


def to(number):
    def change(proto):
        proto.graph.node[0].attribute[0].i = number

    return change


def with_input(number, name):
    def change(proto):
        proto.graph.node[0].input[number] = name

    return change


def call(name):
    def change(proto):
        proto.graph.node[0].op_type = name

    return change


def other_function(proto):
    proto.functions[0].node[-2].op_type = "Identity"


TAMPERED = [
    (flip, "its mask keeps"),
    (tail, "bits after the mask's last weight"),
    (fewer_values, "values are stored"),
    (truncated_values, "w.values: it has .* bytes"),
    (first_value, "its first value"),
    (shape(11, -13), "is negative"),
    (shape(2**20, 2**20), "more than 2.31 elements"),
    (shape(2**62, 4), "more than 2.31 elements"),
    (shape(0, 2**62), "more than 2.31 elements"),
    (shape(11, 14), "announces"),
    (shape(13, 11), "announces"),
    (lambda proto: set_part(proto, "w.shape", np.array([11, 13], np.int32)), "64 bit integers"),
    (lambda proto: set_part(proto, "w.shape", np.array([[11, 13]], np.int64)), "64 bit integers"),
    (lambda proto: set_part(proto, "w.mask", array_of(proto, "w.mask").view(np.int8)), "not a row of bytes"),
    (lambda proto: set_part(proto, "w.mask", array_of(proto, "w.mask")[:-1]), "takes 18 bytes; it has 17"),
    (lambda proto: set_part(proto, "w.values", array_of(proto, "w.values").astype(np.int32)), "floats of 16, 32"),
    (lambda proto: set_part(proto, "w.values", array_of(proto, "w.values")[:, None]), "not a row"),
    (to(7), "floats of 16, 32"),
    (to(99), "no tensor type of number 99"),
    (with_input(0, "elsewhere"), "elsewhere: no initializer"),
    (call("Unpack3"), "this is something else"),
    (other_function, "not one that this version of ecoflap knows"),
]


@pytest.mark.parametrize(("change", "told"), TAMPERED)
def test_a_changed_model_is_refused(tmp_path, change, told):
    proto, _ = packed({"w": sparse((11, 13))})
    change(proto)
    with pytest.raises(FormatError, match=told):
        unpack_initializers(proto)
    path = tmp_path / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match=f"{path}: .*{told}"):
        unpack_initializers(path)


def test_without_the_shape_in_the_graph_the_bits_are_counted():
    proto, _ = packed({"w": sparse((11, 13))})
    del proto.graph.value_info[:]
    shape(11, 14)(proto)
    with pytest.raises(FormatError, match="a mask of 154 weights takes 20 bytes; it has 18"):
        unpack_initializers(proto)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values, places: (values, np.r_[np.uint8(0), places[1:]]), "same position"),
        (lambda values, places: (values, places[:-1]), "positions of 128 values take 32 bytes; it has 31"),
        (lambda values, places: (values[:-1], places), "2:4 of 256 weights is 128 values; 126 are stored"),
        (lambda values, places: (values[:, :, 0], places), "are not pairs"),
        (lambda values, places: (values, places.view(np.int8)), "not a row of bytes"),
    ],
)
def test_a_changed_2_4_weight_is_refused(change, told):
    proto, _ = packed({"w": two_of_four((16, 16))}, patterns=TWO_FOUR)
    changed = change(array_of(proto, "w.values"), array_of(proto, "w.positions"))
    for name, array in zip(("w.values", "w.positions"), changed, strict=True):
        set_part(proto, name, array)
    with pytest.raises(FormatError, match=told):
        unpack_initializers(proto)


@pytest.mark.parametrize("number", range(17))
def test_changed_nodes_of_an_inlined_weight_are_refused(number):
    proto, _ = packed({"w": sparse((11, 13))}, form="inline")
    proto.graph.node[number].op_type = "Identity"
    with pytest.raises(FormatError, match="w: the nodes that unpack it are not those"):
        unpack_initializers(proto)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data, entries: data.unlink(), "which is not there. Put it beside the model"),
        (lambda data, entries: data.write_bytes(data.read_bytes()[:-1]), "is truncated"),
        (lambda data, entries: entries.update(location="../packed.onnx.data"), "outside the model's folder"),
        (lambda data, entries: entries.update(location=str(data.absolute())), "outside the model's folder"),
        (lambda data, entries: entries.update(location="C:\\data"), "outside the model's folder"),
        (lambda data, entries: entries.update(location=""), "outside the model's folder"),
        (lambda data, entries: entries.update(offset="-4"), "bytes at -4"),
        (lambda data, entries: entries.update(length="4"), "its external data are 4 bytes"),
        (lambda data, entries: entries.update(offset="four"), "is no number"),
        (lambda data, entries: entries.update(offset=str(10**6)), "is truncated"),
    ],
)
def test_external_data_that_are_not_there_are_refused(tmp_path, change, told):
    proto, _ = packed({"w": sparse((64, 64))})
    path, data = tmp_path / "packed.onnx", tmp_path / "packed.onnx.data"
    ir.save(ir.from_proto(proto), path, external_data=data.name)
    assert equal(unpack_initializers(path)["w"], sparse((64, 64)))
    proto = onnx.load(path, load_external_data=False)
    mask = part(proto, "w.mask")
    entries = {entry.key: entry.value for entry in mask.external_data}
    change(data, entries)
    del mask.external_data[:]
    for key, value in entries.items():
        mask.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError, match=f"{path}: w.*{told}"):
        unpack_initializers(path)


def test_a_model_without_its_file_has_no_external_data():
    proto, _ = packed({"w": sparse((16, 16))})
    part(proto, "w.mask").data_location = onnx.TensorProto.EXTERNAL
    part(proto, "w.mask").external_data.add(key="location", value="x")
    with pytest.raises(FormatError, match=r"the model: w\.mask: its data are in another file"):
        unpack_initializers(proto)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(100)])
def test_a_file_that_is_no_model_is_refused(tmp_path, data):
    (tmp_path / "no.onnx").write_bytes(data)
    with pytest.raises(FormatError, match=r"no\.onnx: this is no ONNX model"):
        unpack_initializers(tmp_path / "no.onnx")
    with pytest.raises(FormatError, match="there is no such file"):
        unpack_initializers(tmp_path / "none.onnx")


def test_a_truncated_model_is_refused(tmp_path):
    proto, _ = packed({"w": sparse((64, 64))})
    whole = proto.SerializeToString()
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"cut\.onnx"):
            unpack_initializers(tmp_path / "cut.onnx")


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EcoflapError, match=r"pip install 'ecoflap\[onnx\]'"):
        onnx_tensors.library("onnx")


# Sparse initializers


def with_sparse(model, messages):
    """The model as protobuf has it, with sparse initializers in the places of those of these names."""
    proto = ir.to_proto(model)
    left = [tensor for tensor in proto.graph.initializer if tensor.name not in messages]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(left)
    for message in messages.values():
        proto.graph.sparse_initializer.add().ParseFromString(message.tobytes())
    return proto


def test_sparse_initializers_run_and_read_back():
    dense = {"a": sparse((64, 130), 0.7), "b": sparse((130, 64), 0.0), "c": sparse((64, 64), 0.9, np.float16)}
    model = chain(dense)
    stored, messages = to_coo(model, {name: f"layer.{name}" for name in dense})
    proto = with_sparse(model, messages)
    assert [(one.name, one.form) for one in stored] == [("layer.a", "coo"), ("layer.b", "dense"), ("layer.c", "coo")]
    onnx.checker.check_model(proto)
    before = ir.to_proto(chain(dense))
    assert equal(outputs(session(proto)), outputs(session(before)))
    assert all(equal(array, dense[name]) for name, array in unpack_initializers(proto).items())
    saved = len(before.SerializeToString()) - len(proto.SerializeToString())
    said = sum(one.dense_bytes - one.stored_bytes for one in stored)
    assert said - 200 < saved <= said


@given(weights())
@settings(max_examples=60)
def test_any_weight_reads_back_from_a_sparse_initializer(weight):
    model = chain({"w": weight})
    (stored,), messages = to_coo(model, {"w": "w"})
    found = unpack_initializers(with_sparse(model, messages))
    assert set(found) == ({"w"} if stored.form == "coo" else set())
    if found:
        assert equal(found["w"], np.where(weight == 0, weight.dtype.type(0), weight))


def test_a_sparse_initializer_that_is_larger_stays_dense():
    weight = np.zeros((1024, 1024), np.float16)
    weight[:, : 1024 // 2 + 4] = 1
    model = chain({"w": weight})
    (stored,), messages = to_coo(model, {"w": "w"})
    assert stored.form == "dense"
    assert messages == {}
    with pytest.raises(EcoflapError, match="no initializer named 'v'"):
        to_coo(model, {"v": "layer"})


def test_sparse_initializers_that_no_file_holds_are_refused(monkeypatch):
    monkeypatch.setattr("ecoflap.exporters.onnx.forms.coo._MOST", 1000)
    with pytest.raises(EcoflapError, match="one file of 2 GB"):
        to_coo(chain({"w": sparse((64, 64), 0.7)}), {"w": "w"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda sparse: sparse.indices.int64_data.__setitem__(-1, 10**6), "lies outside"),
        (lambda sparse: sparse.indices.int64_data.__setitem__(0, -1), "lies outside"),
        (lambda sparse: sparse.indices.int64_data.__setitem__(1, sparse.indices.int64_data[0]), "rising order"),
        (lambda sparse: sparse.dims.__setitem__(0, 2**40), "more than 2.31"),
        (lambda sparse: sparse.dims.__setitem__(0, -1), "negative"),
        (lambda sparse: sparse.indices.int64_data.pop(), "do not fit"),
        (lambda sparse: sparse.indices.dims.__setitem__(0, 1), "do not fit"),
    ],
)
def test_a_changed_sparse_initializer_is_refused(change, told):
    model = chain({"w": sparse((32, 32), 0.9)})
    proto = with_sparse(model, to_coo(model, {"w": "w"})[1])
    change(proto.graph.sparse_initializer[0])
    with pytest.raises(FormatError, match=f"w.*{told}"):
        unpack_initializers(proto)


def test_indices_may_be_one_row_a_dimension():
    weight = sparse((32, 32), 0.9)
    model = chain({"w": weight})
    proto = with_sparse(model, to_coo(model, {"w": "w"})[1])
    rows = np.argwhere(weight)
    proto.graph.sparse_initializer[0].indices.CopyFrom(onnx.numpy_helper.from_array(rows, "w.indices"))
    assert equal(unpack_initializers(proto)["w"], weight)
