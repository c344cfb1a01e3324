"""Products with packed matrices in int8, in ONNX: what lies where, what rounding is, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_onnx import by_hand, chain, changed, operators_once_loaded, outputs, session, set_byte, sparse

from ecoflap.core.errors import EcoflapError, FormatError

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from onnx.reference import ReferenceEvaluator  # noqa: E402

from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx.decode import packed_in, unpacked  # noqa: E402
from ecoflap.exporters.onnx.encoding import pack  # noqa: E402
from ecoflap.exporters.onnx.forms.product import INT8, check, fill, sizes_of  # noqa: E402
from ecoflap.exporters.onnx.products import encode  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.exporters.onnx.tensors import Opened  # noqa: E402

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 40))


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


def whole(weight):
    """Round a weight [inputs, outputs] to whole numbers of a scale for each output, in plain numpy."""
    scales = np.abs(weight).max(0) / np.float32(127)
    return np.rint(weight / np.where(scales, scales, 1).astype(np.float64)), scales


@settings(max_examples=25)
@given(SHAPES, st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), st.integers(0, 9))
def test_it_is_stored_as_described_and_read_again(shape, sparsity, seed):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * (sparse(shape, sparsity) != 0)
    numbers, expected = whole(weight)
    values, masks, scales = encode(weight, INT8)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    assert scales.tobytes() == expected.tobytes()
    assert np.array_equal(by_hand(values, masks, *shape), numbers)
    check(values, masks, sizes_of(values.dtype, *shape), scales)
    dense = np.zeros(shape, np.float32)
    fill(dense, values, masks, scales)
    assert np.array_equal(dense, numbers.astype(np.float32) * scales)


def test_a_kept_weight_that_rounds_to_zero_keeps_its_place():
    weight = np.array([[1000.0], [0.001], [0.0]], np.float32)
    values, masks, _ = encode(weight, INT8)
    assert np.unpackbits(masks).sum() == 2
    assert values[:2].tolist() == [127, 0]
    assert len(values) == 2 + 64


@pytest.mark.parametrize("shape", [(33, 17), (64, 32), (1, 1), (7, 50)])
def test_the_function_is_the_product(shape):
    """As onnx itself runs it."""
    weight = sparse(shape, seed=3)
    numbers, expected = whole(weight)
    inputs = dict(zip(INT8.parts, encode(weight, INT8), strict=True))
    x = np.random.default_rng(0).standard_normal((2, 3, shape[0])).astype(np.float32)
    found = ReferenceEvaluator(INT8.proto(20)).run(None, {"x": x, **inputs}, {"sizes": list(shape)})[0]
    assert np.array_equal(found, x @ (numbers.astype(np.float32) * expected))


def packed(model, names, int8=True):
    """What was said of a model's weights, as they are in it now."""
    return [one.form for one in pack(model, {name: name for name in names}, Storage("packed_op", int8=int8))]


def test_onnxruntime_runs_it_by_itself_bit_by_bit():
    weights = {"a": sparse((13, 24)), "b": sparse((24, 320), 0.7, seed=1), "c": sparse((320, 16), 0.9, seed=2)}
    rounded = {name: (numbers := whole(weight))[0].astype(np.float32) * numbers[1] for name, weight in weights.items()}
    model = chain(weights)
    assert packed(model, "abc") == ["packed_op int8"] * 3
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert outputs(session(model)).tobytes() == outputs(session(chain(rounded))).tobytes()


def test_the_weights_are_folded_when_it_is_loaded(tmp_path):
    model = chain({"a": sparse((48, 64))})
    packed(model, "a")
    assert operators_once_loaded(model, tmp_path) == ["MatMul"]


def test_what_is_hardly_sparse_is_a_product_too():
    """Without zeros a matrix of whole numbers has a quarter of the bytes of a dense one."""
    weights = {"none": sparse((64, 64), 0), "few": sparse((64, 64), 0.2, seed=1)}
    rounded = {name: (numbers := whole(weight))[0].astype(np.float32) * numbers[1] for name, weight in weights.items()}
    model = chain(weights)
    assert packed(model, weights) == ["packed_op int8"] * 2
    assert outputs(session(model)).tobytes() == outputs(session(chain(rounded))).tobytes()


def test_one_model_has_both_kinds():
    model = chain({"a": sparse((13, 24)), "b": sparse((24, 40), seed=1)})
    assert [*packed(model, "a", int8=False), *packed(model, "b")] == ["packed_op", "packed_op int8"]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {function.name for function in proto.functions} == {"PackedLinear", "PackedLinearInt8"}
    assert {one.name: one.form for one in packed_in(Opened(proto, None))} == {"a": "packed_op", "b": "packed_op int8"}
    assert outputs(session(model)).shape == (3, 40)


def test_a_weight_that_is_not_finite_is_not_rounded():
    weight = sparse((13, 24))
    weight[3, 4] = np.inf
    with pytest.raises(EcoflapError, match=r"w: a weight is not finite.*values: auto"):
        packed(chain({"w": weight}), "w")


# Damage


def saved():
    """A matrix of 40 inputs and 20 outputs."""
    model = chain({"w": sparse((40, 20))})
    packed(model, "w")
    return ir.to_proto(model)


def set_scale(output, value):
    def change(raw):
        raw[4 * output : 4 * output + 4] = np.float32(value).tobytes()

    return change


DAMAGE = {
    "a weight more": ("w.masks", set_byte(0, 0xFF), "its masks keep .* weights but .* values are stored"),
    "an output that is none": ("w.masks", set_byte(-1, 0x80), "beyond its inputs or outputs"),
    "an input that is none": ("w.masks", set_byte(8 * 10, 1), "beyond its inputs or outputs"),
    "bytes behind the values": ("w.values", set_byte(-1, 1), "bytes behind its values are not zero"),
    "a scale below zero": ("w.scales", set_scale(19, -1), "its scales are no finite numbers from 0 on"),
    "a scale that is no number": ("w.scales", set_scale(0, np.nan), "its scales are no finite numbers from 0 on"),
}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(name, change, message):
    proto = saved()
    changed(proto, name, change)
    with pytest.raises(FormatError, match=f"the model: w: .*{message}"):
        unpacked(packed_in(Opened(proto, None)), np.zeros)


def tensor(proto, name):
    return next(one for one in proto.graph.initializer if one.name == name)


def fewer_scales(proto):
    scales = tensor(proto, "w.scales")
    scales.dims[0], scales.raw_data = 19, scales.raw_data[: 4 * 19]


def scales_of_another_type(proto):
    tensor(proto, "w.scales").data_type = onnx.TensorProto.INT32


def values_without_sign(proto):
    tensor(proto, "w.values").data_type = onnx.TensorProto.UINT8


def no_scales(proto):
    del proto.graph.node[0].input[3]


def other_operator(proto):
    proto.graph.node[0].op_type = "PackedLinear"
    no_scales(proto)


def other_function(proto):
    proto.functions[0].node[-2].op_type = "Add"


WRONG = {
    fewer_scales: "its scales are not a float32 for each output",
    scales_of_another_type: "its scales are not a float32 for each output",
    values_without_sign: "its values are uint8 and none of int8",
    no_scales: "multiplies x with values, masks and scales",
    other_operator: "its values are int8 and none of float64, float32, float16, bfloat16",
    other_function: "the function PackedLinearInt8 is not one that this version of ecoflap knows",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_what_describes_another_matrix_is_refused(change):
    proto = saved()
    change(proto)
    with pytest.raises(FormatError, match=WRONG[change]):
        unpacked(packed_in(Opened(proto, None)), np.zeros)
