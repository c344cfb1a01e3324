"""Sessions of onnxruntime whose matrices stay packed in int8: their numbers are exact, to the last bit."""

import numpy as np
import pytest
import torch
from tiny_onnx import at_odd_offsets, chain, changed, sparse

from ecoflap.core.errors import FormatError, KernelError
from ecoflap.core.kernel import library_file
from ecoflap.core.kernel import packed_linear as _op  # noqa: F401 - registers torch's operator
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.route import route
from kernels import paths

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
runtime = pytest.importorskip("onnxruntime")

from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.onnx import densify, library, load_session  # noqa: E402

needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())
SHAPES = [(64, 32), (13, 24), (320, 17), (2, 50), (129, 70), (2050, 16)]
"""Inputs and outputs that fill blocks and that do not."""


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


def weight_of(shape, sparsity=0.5, seed=0):
    """Of numbers that no type of few bits holds."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * (sparse(shape, sparsity, seed=seed) != 0)).astype(np.float32)


def saved(folder, weights, **how):
    model = chain(weights)
    onnx_encoding.pack(model, {name: name for name in weights}, Storage(weights="packed_op", int8=True))
    ir.save(model, folder / "packed.onnx", **how)
    return folder / "packed.onnx"


def quiet():
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is refused is raised too
    return options


def plain(path, options=None):
    return runtime.InferenceSession(path, options or quiet(), providers=["CPUExecutionProvider"])


def with_library(path):
    """As a user registers it by hand."""
    options = quiet()
    options.register_custom_ops_library(str(library()))
    return plain(path, options)


def rows_of(shape, rows, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, shape[0])).astype(np.float32)


def run(session, x):
    return session.run(None, {"x": x})[0]


def rounded(weight):
    """Whole numbers and a scale for each output."""
    scales = np.abs(weight).max(0) / np.float32(127)
    return np.rint(weight / np.where(scales, scales, 1).astype(np.float64)), scales


def exact(x, weight):
    """The product in whole numbers, by plain numpy."""
    whole, scales = rounded(weight)
    steps = np.abs(x).max(1, initial=0).astype(np.float64) / 32767
    rows = np.rint(x.astype(np.float64) * np.divide(1, steps, where=steps > 0, out=np.zeros_like(steps))[:, None])
    sums = rows.astype(np.int64) @ whole.astype(np.int64)
    return (sums * (steps[:, None] * scales.astype(np.float64))).astype(np.float32)


@needs_library
@pytest.mark.parametrize("name", paths())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_path_gives_the_exact_product(tmp_path, monkeypatch, name, shape):
    weight = weight_of(shape)
    packed = saved(tmp_path, {"w": weight})
    monkeypatch.setenv("ECOFLAP_KERNEL", name)
    session = load_session(packed)
    for rows in (0, 1, 2, 3, 8, 17, 33):
        x = rows_of(shape, rows)
        assert run(session, x).tobytes() == exact(x, weight).tobytes()


@needs_library
@pytest.mark.parametrize("sparsity", [0.4, 0.9, 1.0])
def test_it_is_what_torch_computes(tmp_path, sparsity):
    weight = weight_of((96, 80), sparsity)
    session = load_session(saved(tmp_path, {"w": weight}))
    matrix = pack_dense(torch.from_numpy(weight.T), values="int8")
    for rows in (1, 4):
        x = rows_of(weight.shape, rows)
        expected = torch.ops.ecoflap.packed_linear(torch.from_numpy(x), matrix, None, 80)
        assert route().batch(torch.float32, "int8") >= rows
        assert run(session, x).tobytes() == expected.numpy().tobytes()


@needs_library
def test_more_rows_than_go_through_a_cache_at_once(tmp_path):
    """x is rounded some rows at a time, at least 64."""
    weight = weight_of((16400, 16))
    x = rows_of(weight.shape, 131)
    assert run(load_session(saved(tmp_path, {"w": weight})), x).tobytes() == exact(x, weight).tobytes()


@needs_library
def test_rows_of_zeros_and_outliers(tmp_path):
    weight = weight_of((40, 20))
    weight[:, 3] = 0
    x = rows_of(weight.shape, 4)
    x[1], x[2, 5] = 0, 1e30
    assert run(load_session(saved(tmp_path, {"w": weight})), x).tobytes() == exact(x, weight).tobytes()


@needs_library
def test_a_row_that_is_not_finite_is_computed_in_float(tmp_path):
    weight = weight_of((40, 20))
    session = load_session(saved(tmp_path, {"w": weight}))
    x = rows_of(weight.shape, 3)
    before = run(session, x)
    x[1, 7] = np.inf
    found, (whole, scales) = run(session, x), rounded(weight)
    with np.errstate(invalid="ignore"):
        expected = x @ (whole.astype(np.float32) * scales)
    assert found[[0, 2]].tobytes() == before[[0, 2]].tobytes()
    assert np.array_equal(np.isnan(found[1]), np.isnan(expected[1]))
    assert np.array_equal(found[1][~np.isnan(found[1])], expected[1][~np.isnan(expected[1])])


@needs_library
@pytest.mark.parametrize("sizes", [(), (1,), (2, 3), (0, 5)])
def test_batches_of_any_shape(tmp_path, sizes):
    weight = weight_of((40, 20))
    packed = saved(tmp_path, {"w": weight})
    proto = onnx.load(packed)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    onnx.save(proto, packed)
    x = np.random.default_rng(0).standard_normal((*sizes, 40)).astype(np.float32)
    found = run(load_session(packed), x)
    assert found.shape == (*sizes, 20)
    assert found.tobytes() == exact(x.reshape(-1, 40), weight).tobytes()


@needs_library
def test_threads_do_not_change_it(tmp_path):
    """Enough blocks for several tasks of onnxruntime's pool."""
    weight = weight_of((1024, 2048))
    packed, x = saved(tmp_path, {"w": weight}), rows_of((1024, 2048), 20)
    for threads in (1, 3):
        options = quiet()
        options.intra_op_num_threads = threads
        assert run(load_session(packed, options=options), x).tobytes() == exact(x, weight).tobytes()


@needs_library
def test_one_file_is_run_by_the_library_where_it_is_registered_and_by_itself_elsewhere(tmp_path):
    weights = {"a": weight_of((40, 64)), "b": weight_of((64, 24), seed=1), "few": weight_of((24, 8), 0.1, seed=2)}
    packed, x = saved(tmp_path, weights), rows_of((40, 8), 5)
    ordinary = run(plain(densify(packed, tmp_path / "new.onnx")), x)
    first, second, few = (np.multiply(*rounded(weight)) for weight in weights.values())
    expected = x @ first @ second @ few
    np.testing.assert_allclose(ordinary, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert run(plain(packed), x).tobytes() == ordinary.tobytes()
    ours = run(load_session(packed), x)
    assert run(with_library(packed), x).tobytes() == ours.tobytes()
    assert ours.tobytes() != ordinary.tobytes()  # for x is rounded
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    made = onnx.load(tmp_path / "new.onnx")
    assert not made.functions
    assert {node.op_type for node in made.graph.node} == {"MatMul"}


def test_without_the_library_its_function_runs_and_a_warning_says_so(tmp_path, monkeypatch):
    packed, x = saved(tmp_path, {"w": weight_of((40, 20))}), rows_of((40, 20), 3)
    monkeypatch.setattr(library_file, "LIBRARY_FILE", tmp_path / "none.so")
    with pytest.warns(UserWarning, match=r"packed\.onnx: its matrices are decoded"):
        session = load_session(packed)
    assert run(session, x).tobytes() == run(plain(packed), x).tobytes()


@needs_library
def test_a_library_of_another_version_is_not_given_to_onnxruntime(tmp_path, monkeypatch):
    """One may lack an operator, and onnxruntime runs the function of the file then and says nothing."""
    packed, here = saved(tmp_path, {"w": weight_of((40, 20))}), library_file.ABI
    monkeypatch.setattr(library_file, "ABI", here + 1)
    said = rf"is of version {here}, and {here + 1} is needed\. Install ecoflap again"
    with pytest.raises(KernelError, match=said):
        load_session(packed)
    with pytest.raises(KernelError, match=said):
        library()


# Damage, and what the operator itself refuses


def damage(path, name, change):
    proto = onnx.load(path)
    changed(proto, name, change)
    onnx.save(proto, path)


def more_ones(raw):
    raw[0] = 0xFF


def no_number(raw):
    raw[:4] = np.float32(np.nan).tobytes()


DAMAGED = {
    "w.masks": (more_ones, r"its masks keep .* weights but", "its masks do not fit its kept values"),
    "w.scales": (no_number, "its scales are no finite numbers", "its scales are no finite numbers from 0 on"),
}


@needs_library
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_matrix_is_refused_by_name(tmp_path, name):
    """By us before onnxruntime sees it, and by the operator where a user registers it."""
    change, ours, the_operators = DAMAGED[name]
    packed = saved(tmp_path, {"w": weight_of((40, 20))})
    damage(packed, name, change)
    for read in (load_session, lambda path: densify(path, tmp_path / "out.onnx")):
        with pytest.raises(FormatError, match=rf"packed\.onnx: w: {ours}"):
            read(packed)
    with pytest.raises(Exception, match=rf"ecoflap: w\.values: .*{the_operators}"):
        with_library(packed)


def fewer_scales(proto):
    (scales,) = (one for one in proto.graph.initializer if one.name == "w.scales")
    scales.dims[0], scales.raw_data = 19, scales.raw_data[: 4 * 19]


def other_sizes(proto):
    proto.graph.node[0].attribute[0].ints[:] = [40, 36]


def nothing_of_many(proto):
    """No inputs, and outputs of which nothing in the file takes a byte."""
    proto.graph.node[0].attribute[0].ints[:] = [0, 2**28]
    for tensor, size in zip(proto.graph.initializer, (64, 0), strict=False):
        tensor.dims[:], tensor.raw_data = [size], bytes(size)


WRONG = {
    fewer_scales: "its scales are not one for each output",
    other_sizes: "its masks are not of its sizes",
    nothing_of_many: "no matrix has its sizes and its values",
}


@needs_library
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_the_operator_refuses_what_is_no_matrix(tmp_path, change):
    packed = saved(tmp_path, {"w": weight_of((40, 20))})
    proto = onnx.load(packed)
    change(proto)
    packed.write_bytes(proto.SerializeToString())
    with pytest.raises(Exception, match=rf"ecoflap: w\.values: {WRONG[change]}"):
        with_library(packed)


@needs_library
def test_external_data_that_are_not_aligned(tmp_path):
    """Another tool may write them so."""
    weight = weight_of((256, 80))
    odd = at_odd_offsets(onnx.load(saved(tmp_path, {"w": weight})), tmp_path)
    x = rows_of(weight.shape, 3)
    for load in (load_session, with_library):
        assert run(load(odd), x).tobytes() == exact(x, weight).tobytes()
