"""Products with packed matrices in ONNX: what lies where, which layers they take the place of, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_onnx import by_hand, chain, changed, operators_once_loaded, outputs, session, set_byte, sparse

from ecoflap.core.errors import EcoflapError, FormatError

ml_dtypes = pytest.importorskip("ml_dtypes")
onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx.decode import packed_in, unpacked  # noqa: E402
from ecoflap.exporters.onnx.encoding import pack  # noqa: E402
from ecoflap.exporters.onnx.forms.product import EXACT, check, fill, sizes_of  # noqa: E402
from ecoflap.exporters.onnx.products import encode, round_vocabulary  # noqa: E402
from ecoflap.exporters.onnx.scratch import in_memory  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.exporters.onnx.tensors import Opened  # noqa: E402

STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 40))


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


@settings(max_examples=25)
@given(SHAPES, st.sampled_from(list(TYPES)), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 9))
def test_it_is_stored_as_described_and_read_again(shape, name, sparsity, seed):
    weight = sparse(shape, sparsity, seed=seed).astype(TYPES[name])
    values, masks = encode(weight)
    assert by_hand(values, masks, *shape).tobytes() == weight.tobytes()
    check(values, masks, sizes_of(values.dtype, *shape))
    dense = np.zeros(shape, np.float32)
    fill(dense, values, masks)
    assert dense.tobytes() == weight.astype(np.float32).tobytes()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(33, 17), (64, 32), (1, 1), (7, 50)])
def test_the_function_is_the_product(name, shape):
    """As onnx itself runs it."""
    weight = sparse(shape, seed=3).astype(TYPES[name])
    values, masks = encode(weight)
    inputs = {"values": values, "masks": masks}
    x = np.random.default_rng(0).standard_normal((2, 3, shape[0])).astype(np.float32)
    run = ReferenceEvaluator(EXACT.proto(20))
    assert np.array_equal(run.run(None, {"x": x, **inputs}, {"sizes": list(shape)})[0], x @ weight.astype(np.float32))


def packed(model, names, store="float32"):
    """What was said of a model's weights, as they are in it now."""
    storage = Storage(weights="packed_op", values=STORED[store])
    return [one.form for one in pack(model, {name: name for name in names}, storage)]


@pytest.mark.parametrize("store", STORED)
def test_onnxruntime_runs_it_by_itself_bit_by_bit(store):
    weights = {"a": sparse((13, 24)), "b": sparse((24, 320), 0.7, seed=1), "c": sparse((320, 16), 0.9, seed=2)}
    model = chain(weights)
    expected = outputs(session(chain(weights)))
    assert packed(model, "abc", store) == ["packed_op"] * 3
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert outputs(session(model)).tobytes() == expected.tobytes()


def test_the_weights_are_folded_when_it_is_loaded(tmp_path):
    model = chain({"a": sparse((48, 64))})
    packed(model, "a")
    assert operators_once_loaded(model, tmp_path) == ["MatMul"]


def graph(nodes, weights):
    """A model from x [rows, inputs] to y."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "graph",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 13])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", None])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return ir.serde.deserialize_model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def node(*arguments, **attributes):
    return onnx.helper.make_node(*arguments, **attributes)


def operators(model):
    return [one.op_type for one in model.graph]


def test_a_gemm_with_a_bias():
    weights = {"w": sparse((24, 13)), "b": sparse((24,), 0.0, seed=1)}
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    model = graph(nodes, weights)
    assert packed(model, "w") == ["packed_op"]
    assert operators(model) == ["PackedLinear", "Add"]
    assert set(model.graph.initializers) == {"w.transposed.values", "w.transposed.masks", "b"}
    np.testing.assert_allclose(outputs(session(model)), outputs(session(graph(nodes, weights))), rtol=1e-5, atol=1e-4)


def test_a_gemm_whose_weight_lies_as_it_is_multiplied():
    """As GPT-2's."""
    weights = {"w": sparse((13, 24)), "b": sparse((24,), 0.0, seed=1)}
    nodes = [node("Gemm", ["x", "w", "b"], ["y"])]
    model = graph(nodes, weights)
    assert packed(model, "w") == ["packed_op"]
    assert operators(model) == ["PackedLinear", "Add"]
    assert set(model.graph.initializers) == {"w.values", "w.masks", "b"}
    np.testing.assert_allclose(outputs(session(model)), outputs(session(graph(nodes, weights))), rtol=1e-5, atol=1e-4)


def test_two_layers_share_a_matrix_that_is_stored_once():
    weights = {"w": sparse((13, 13))}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w"], ["y"])]
    model = graph(nodes, weights)
    assert packed(model, "w") == ["packed_op"]
    assert operators(model) == ["PackedLinear", "Relu", "PackedLinear"]
    assert set(model.graph.initializers) == {"w.values", "w.masks"}
    assert outputs(session(model)).tobytes() == outputs(session(graph(nodes, weights))).tobytes()
    (found,) = packed_in(Opened(ir.to_proto(model), None))
    assert found.products == (0, 2)


OTHERS = {
    "read by an embedding too": [
        node("MatMul", ["x", "w"], ["h"]), node("Gather", ["w", "rows"], ["g"]), node("Add", ["h", "g"], ["y"])
    ],
    "scaled": [node("Gemm", ["x", "w"], ["y"], alpha=2.0, transB=1)],
    "scaled, and not transposed": [node("Gemm", ["x", "w", "b"], ["y"], beta=2.0)],
    "the first factor": [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("MatMul", ["w", "t"], ["y"])],
    "both kinds": [
        node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["h", "w"], ["y"], transB=1)
    ],
}  # fmt: skip


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_what_is_no_linear_layer_is_unpacked_as_before(nodes):
    weights = {"w": sparse((13, 13)), "b": sparse((13,), 0.0, seed=1), "rows": np.array([0], np.int64)}
    model = graph(nodes, weights)
    assert packed(model, "w") == ["bitmask"]
    assert "PackedLinear" not in operators(model)
    assert outputs(session(model)).tobytes() == outputs(session(graph(nodes, weights))).tobytes()


def test_what_is_hardly_sparse_is_unpacked():
    """A dense product is faster below 35 % of zeros."""
    weights = {"few": sparse((64, 64), 0.2), "enough": sparse((64, 64), 0.4, seed=1)}
    assert packed(chain(weights), weights) == ["bitmask", "packed_op"]


def test_a_name_in_the_way_is_said():
    nodes = [node("Relu", ["x"], ["w.masks"]), node("MatMul", ["w.masks", "w"], ["y"])]
    with pytest.raises(EcoflapError, match=r"w\.masks is in the way"):
        packed(graph(nodes, {"w": sparse((13, 24))}), "w")


@pytest.mark.parametrize(("name", "reads"), [("w.transposed.scales", ["w", "w"]), ("w.row_scales", ["v", "w"])])
def test_a_name_in_the_way_of_words_is_said_before_anything_is_changed(name, reads):
    head, words = reads
    nodes = [
        node("Relu", ["x"], [name]), node("Gemm", [name, head], ["y"], transB=1), node("Gather", [words, "ids"], ["g"])
    ]  # fmt: skip
    model = graph(nodes, {"w": sparse((24, 13)), "v": sparse((24, 13)), "ids": np.array([0], np.int64)})
    with pytest.raises(EcoflapError, match=rf"{name} is in the way: w is packed"):
        round_vocabulary(model, model.graph.initializers["w"], "w", in_memory)
    assert operators(model) == ["Relu", "Gemm", "Gather"]
    assert set(model.graph.initializers) == {"w", "v", "ids"}


# Damage


def saved(store="float32"):
    model = chain({"w": sparse((40, 20))})
    packed(model, "w", store)
    return ir.to_proto(model)


DAMAGE = {
    "a weight more": ("w.masks", set_byte(0, 0xFF), "its masks keep .* weights but .* values are stored"),
    "an input that is none": ("w.masks", set_byte(2 * 40, 1), "beyond its inputs or outputs"),
    "an output that is none": ("w.masks", set_byte(2 * 64 + 1, 0x80), "beyond its inputs or outputs"),
    "bytes behind the values": ("w.values", set_byte(-1, 1), "bytes behind its values are not zero"),
}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(name, change, message):
    proto = saved()
    changed(proto, name, change)
    with pytest.raises(FormatError, match=f"the model: w: .*{message}"):
        unpacked(packed_in(Opened(proto, None)), np.zeros)


def shape_of_masks(proto):
    (masks,) = (one for one in proto.graph.initializer if one.name == "w.masks")
    masks.dims[1], masks.dims[2] = masks.dims[1] // 2, 4


def other_sizes(proto):
    proto.graph.node[0].attribute[0].ints[:] = [20, 40]


def no_values(proto):
    del proto.graph.initializer[next(n for n, one in enumerate(proto.graph.initializer) if one.name == "w.values")]


def other_function(proto):
    proto.functions[0].node[-1].op_type = "Add"


def another_input(proto):
    proto.graph.node[0].input[2] = "x"


WRONG = {
    shape_of_masks: "its masks are not bytes of the shape",
    other_sizes: "its masks are not bytes of the shape",
    no_values: r"w\.values: no initializer has this name",
    other_function: "the function PackedLinear is not one that this version of ecoflap knows",
    another_input: "multiplies x with values and masks",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_what_describes_another_matrix_is_refused(change):
    proto = saved()
    change(proto)
    with pytest.raises(FormatError, match=WRONG[change]):
        unpacked(packed_in(Opened(proto, None)), np.zeros)
