"""Sessions of onnxruntime whose matrices stay packed; without the library a file's own function is run."""

import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_onnx import at_odd_offsets, chain, damages, sparse

from ecoflap.core.errors import EcoflapError, FormatError, KernelError
from ecoflap.core.kernel import library_file
from kernels import library as kernels
from kernels import paths, usable

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
runtime = pytest.importorskip("onnxruntime")

from ecoflap.exporters.onnx import encoding as onnx_encoding  # noqa: E402
from ecoflap.exporters.onnx.settings import Storage  # noqa: E402
from ecoflap.onnx import densify, library, load_session  # noqa: E402

CPU = ["CPUExecutionProvider"]
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", -(10**9))


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(library_file, "LIBRARY_FILE", tmp_path / "none.so")


def matrices():
    """Of sizes that fill blocks and that do not; "all" is whole, so that its masks are not read."""
    return {
        "a": sparse((13, 24)),
        "b": sparse((24, 320), 0.7, seed=1),
        "c": sparse((320, 17), 0.9, seed=2),
        "d": sparse((17, 64), 0.5, seed=3),
        "few": sparse((64, 32), 0.1, seed=4),
        "bias": sparse((32,), 0.5, seed=5),
    }


def saved(folder, weights=None, store="float32", **how):
    """A packed file, and the same model dense."""
    weights = weights or matrices()
    ir.save(chain(weights), folder / "dense.onnx")
    model = chain(weights)
    onnx_encoding.pack(model, {name: name for name in weights}, Storage(weights="packed_op", values=STORED[store]))
    ir.save(model, folder / "packed.onnx", **how)
    return folder / "packed.onnx", folder / "dense.onnx"


def quiet():
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is refused is raised too
    return options


def plain(path, options=None):
    return runtime.InferenceSession(path, options or quiet(), providers=CPU)


def with_library(path, options=None):
    """As a user registers it by hand."""
    options = options or quiet()
    options.register_custom_ops_library(str(library()))
    return plain(path, options)


def inputs(session, *sizes, seed=0):
    (described,) = session.get_inputs()
    x = np.random.default_rng(seed).standard_normal((*sizes, described.shape[-1]))
    return {described.name: x.astype(np.float32)}


def run(session, *sizes):
    return session.run(None, inputs(session, *sizes))[0]


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max(initial=0))


def nodes_run(path, load, folder):
    options = quiet()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    load(path, options)
    return [node.op_type for node in onnx.load(folder / "loaded.onnx", load_external_data=False).graph.node]


LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"]


@needs_library
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("store", STORED)
def test_one_file_is_run_by_the_library_where_it_is_registered_and_by_itself_elsewhere(tmp_path, store, level):
    packed, dense = saved(tmp_path, store=store)
    options = [quiet() for _ in range(4)]
    for one in options:
        one.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    by_hand, ours = with_library(packed, options[0]), load_session(packed, providers=CPU, options=options[1])
    alone, original = plain(packed, options[2]), plain(dense, options[3])
    for rows in (0, 1, 2, 3, 17, 40):
        expected = run(original, rows)
        if level == "ORT_ENABLE_ALL":  # else what is unpacked is so in each run, and multiplied by another routine
            assert run(alone, rows).tobytes() == expected.tobytes()
            assert run(by_hand, rows).tobytes() == run(ours, rows).tobytes()
        for session in (alone, by_hand, ours):
            assert_near(run(session, rows), expected)


@needs_library
def test_a_registered_operator_goes_before_a_function_of_the_file(tmp_path):
    """And functions of the same domain that are not registered are run as before."""
    packed, _ = saved(tmp_path)
    found = nodes_run(packed, with_library, tmp_path)
    assert found.count("PackedLinear") == 4
    assert "CumSum" in found  # "few" is unpacked
    found = nodes_run(packed, lambda path, options: load_session(path, options=options), tmp_path)
    assert found == ["PackedLinear"] * 4 + ["MatMul", "Add"]
    assert "PackedLinear" not in nodes_run(packed, plain, tmp_path)


@needs_library
@pytest.mark.parametrize("name", paths())
@pytest.mark.parametrize("store", STORED)
def test_every_path_is_right(tmp_path, monkeypatch, name, store):
    packed, dense = saved(tmp_path, store=store)
    monkeypatch.setenv("ECOFLAP_KERNEL", name)
    session = load_session(packed)
    for rows in (1, 5, 33):
        assert_near(run(session, rows), run(plain(dense), rows))


@needs_library
def test_a_path_that_cannot_be_taken_is_said(tmp_path, monkeypatch):
    packed, _ = saved(tmp_path)
    may_be = f"Here it may be {', '.join(usable())}; unset, it is the fastest of these"
    monkeypatch.setenv("ECOFLAP_KERNEL", "nothing")
    with pytest.raises(KernelError) as error:
        load_session(packed, options=quiet())
    assert str(error.value) == f"{packed}: ECOFLAP_KERNEL=nothing: there is no path of this name. {may_be}"
    lacking = [path for path in kernels().paths() if "this CPU lacks" in path.lacks]
    for path in lacking:  # NEON and AVX are never on one CPU
        monkeypatch.setenv("ECOFLAP_KERNEL", path.name)
        with pytest.raises(KernelError) as error:
            load_session(packed, options=quiet())
        assert str(error.value) == f"{packed}: ECOFLAP_KERNEL={path.name}: {path.lacks}. {may_be}"
    assert lacking


@needs_library
def test_torch_is_as_if_no_path_were_named(tmp_path, monkeypatch):
    """It is none of the library's, and one process may well multiply in torch too."""
    packed, _ = saved(tmp_path)
    expected = run(load_session(packed), 3)
    monkeypatch.setenv("ECOFLAP_KERNEL", "torch")
    assert run(load_session(packed), 3).tobytes() == expected.tobytes()


@needs_library
@pytest.mark.parametrize("sizes", [(), (1,), (4,), (2, 3), (2, 1, 3), (0, 5)])
def test_batches_of_any_shape(tmp_path, sizes):
    weight = sparse((40, 20))
    packed, _ = saved(tmp_path, {"w": weight})
    proto = onnx.load(packed)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    onnx.save(proto, packed)
    x = np.random.default_rng(0).standard_normal((*sizes, 40)).astype(np.float32)
    (found,) = load_session(packed).run(None, {"x": x})
    assert_near(found, x @ weight)


@needs_library
def test_x_of_another_size_is_refused(tmp_path):
    packed, _ = saved(tmp_path, {"w": sparse((40, 20))})
    proto = onnx.load(packed)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, packed)
    with pytest.raises(Exception, match=r"ecoflap: w\.values: x has another number of inputs than it has"):
        load_session(packed, options=quiet()).run(None, {"x": np.ones((2, 41), np.float32)})


@needs_library
def test_threads_do_not_change_it(tmp_path):
    """Enough blocks for several tasks of onnxruntime's pool."""
    packed, dense = saved(tmp_path, {"w": sparse((512, 1024))})
    found = []
    for threads in (1, 3):
        options = quiet()
        options.intra_op_num_threads = threads
        session = load_session(packed, options=options)
        found += [run(session, 1), run(session, 20)]
    assert found[0].tobytes() == found[2].tobytes()
    assert found[1].tobytes() == found[3].tobytes()
    assert_near(found[3], run(plain(dense), 20))


@needs_library
def test_external_data_that_are_not_aligned(tmp_path):
    """Another tool may write them so."""
    packed, dense = saved(tmp_path, external_data="weights.data")
    odd = at_odd_offsets(onnx.load(packed), tmp_path, smallest=64)  # onnxruntime wants a shape in the file itself
    for load in (load_session, with_library):
        assert_near(run(load(odd), 3), run(plain(dense), 3))
        assert_near(run(load(packed), 3), run(plain(dense), 3))


# What is missing or damaged


def test_without_the_library_its_function_runs_and_a_warning_says_so(tmp_path, without_library):
    packed, dense = saved(tmp_path)
    with pytest.warns(UserWarning, match=r"packed\.onnx: its matrices are decoded.*none\.so is not there: .*compiler"):
        session = load_session(packed)
    assert run(session, 3).tobytes() == run(plain(dense), 3).tobytes()
    with pytest.raises(KernelError, match="Install one, and ecoflap again"):
        library()


def test_without_packed_products_nothing_is_said_of_the_library(tmp_path, without_library):
    _, dense = saved(tmp_path)
    assert run(load_session(dense), 3).tobytes() == run(plain(dense), 3).tobytes()


def test_a_library_that_is_none_is_named(tmp_path, monkeypatch):
    packed, _ = saved(tmp_path)
    monkeypatch.setattr(library_file, "LIBRARY_FILE", tmp_path / "foreign.so")
    library_file.LIBRARY_FILE.write_bytes(b"of another CPU")
    with pytest.raises(KernelError, match=r"foreign\.so cannot be used here: .*Install ecoflap again"):
        load_session(packed)


@needs_library
def test_a_library_that_is_cut_off_is_not_given_to_onnxruntime(tmp_path, monkeypatch):
    """Which would open it, and end with the process."""
    packed, _ = saved(tmp_path)
    (tmp_path / "cut.so").write_bytes(b"\x7fELF\x02\x01".ljust(63, b"\x00"))
    monkeypatch.setattr(library_file, "LIBRARY_FILE", tmp_path / "cut.so")
    for refused in (library, lambda: load_session(packed)):
        with pytest.raises(KernelError, match=r"cut\.so is cut off\. Install ecoflap again$"):
            refused()


def damage(path, name, at, value):
    proto = onnx.load(path)
    (tensor,) = (one for one in proto.graph.initializer if one.name == name)
    raw = bytearray(tensor.raw_data)
    raw[at] = value
    tensor.raw_data = bytes(raw)
    onnx.save(proto, path)


@needs_library
def test_a_damaged_matrix_is_refused_by_name(tmp_path):
    """By us before onnxruntime sees it, and by the operator where a user registers it."""
    packed, _ = saved(tmp_path)
    damage(packed, "b.masks", 0, 0xFF)
    for read in (load_session, lambda path: densify(path, tmp_path / "out.onnx")):
        with pytest.raises(FormatError, match=r"packed\.onnx: b: its masks keep .* weights but .* values are stored"):
            read(packed)
    with pytest.raises(Exception, match=r"ecoflap: b\.values: this is a damaged matrix: its masks do not fit its kept"):
        with_library(packed)


@needs_library
def test_a_byte_that_was_changed_makes_no_error_of_anothers(tmp_path):
    packed, _ = saved(tmp_path, external_data="weights.data")
    refused = 0
    for _ in damages(packed, 100):
        try:
            load_session(packed, options=quiet())
        except EcoflapError as error:
            refused += str(packed) in str(error)
    assert refused > 20


def other_sizes(node):
    node.attribute[0].ints[:] = [13, 100]


def impossible_sizes(node):
    node.attribute[0].ints[:] = [13, 10**15]


def no_sizes(node):
    del node.attribute[:]


def masks_for_values(node):
    node.input[1] = node.input[2]


WRONG = {
    other_sizes: "its masks are not of its sizes",
    impossible_sizes: "no matrix has its sizes and its values",
    no_sizes: r"its sizes are not said to be \[inputs, outputs\]",
    masks_for_values: "its values are of a type that is not known",
}


@needs_library
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_the_operator_refuses_what_is_no_matrix(tmp_path, change):
    packed, _ = saved(tmp_path)
    proto = onnx.load(packed)
    change(next(node for node in proto.graph.node if node.op_type == "PackedLinear"))
    packed.write_bytes(proto.SerializeToString())
    with pytest.raises(Exception, match=f"ecoflap: a.masks: {WRONG[change]}|ecoflap: a.values: {WRONG[change]}"):
        with_library(packed)


@needs_library
def test_values_that_are_not_stored_are_refused(tmp_path):
    packed, _ = saved(tmp_path, {"w": sparse((40, 20))})
    proto = onnx.load(packed)
    (values,) = (one for one in proto.graph.initializer if one.name == "w.values")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w.values", values.data_type, list(values.dims)))
    proto.graph.initializer.remove(values)
    packed.write_bytes(proto.SerializeToString())
    with pytest.raises(Exception, match=r"ecoflap: w\.values: it is no constant of the model"):
        with_library(packed)


# An ordinary file, and memory


@pytest.mark.parametrize("store", STORED)
def test_it_is_made_an_ordinary_file(tmp_path, store):
    packed, dense = saved(tmp_path, store=store)
    made = onnx.load(densify(packed, tmp_path / "new.onnx"))
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["MatMul"] * 5 + ["Add"]
    assert {opset.domain for opset in made.opset_import} == {""}
    assert not made.functions
    found = {one.name: onnx.numpy_helper.to_array(one).tobytes() for one in made.graph.initializer}
    assert found == {name: weight.tobytes() for name, weight in matrices().items()}
    assert run(plain(tmp_path / "new.onnx"), 3).tobytes() == run(plain(dense), 3).tobytes()


RESIDENT = """
import ctypes, re, sys
import numpy, onnxruntime
import ecoflap.onnx
load = {"dense": onnxruntime.InferenceSession, "packed": ecoflap.onnx.load_session}[sys.argv[1]]
def resident():
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
load(sys.argv[2])  # what the libraries take
before = resident()
session = load(sys.argv[3])
(described,) = session.get_inputs()
session.run(None, {described.name: numpy.ones((3, described.shape[1]), numpy.float32)})
print(resident() - before)
assert "torch" not in sys.modules
"""


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_packed_matrices_stay_packed_in_memory(tmp_path):
    """No dense copy is made, nor a second packed one: three matrices of 16 MB at 70 % are 5.5 MB each."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir(), large.mkdir()
    saved(small)
    saved(large, {name: sparse((2048, 2048), 0.7, seed=n) for n, name in enumerate("abc")})

    def grown(which):
        command = [sys.executable, "-c", RESIDENT, which, str(small / f"{which}.onnx"), str(large / f"{which}.onnx")]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    dense, stored = 3 * 2048 * 2048 * 4, (large / "packed.onnx").stat().st_size
    assert grown("dense") > 0.9 * dense
    assert grown("packed") < stored + 0.25 * dense
    assert stored < 0.34 * dense


def in_huge_pages():
    """Bytes of this process' own memory that lie in huge pages."""
    (kilobytes,) = re.findall(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(kilobytes) << 10


def collapses():
    """Whether the system puts written memory into huge pages when it is asked to."""
    try:
        with mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[:] = bytes(len(memory))
            memory.madvise(25)  # MADV_COLLAPSE
    except (AttributeError, OSError):
        return False
    return Path("/proc/self/smaps_rollup").exists()


@needs_library
@pytest.mark.skipif(not collapses(), reason="this system does not put memory into huge pages when it is asked to")
def test_matrices_are_put_into_huge_pages(tmp_path):
    weights = {"a": sparse((64, 2048)), "b": sparse((2048, 4096), seed=1), "c": sparse((4096, 2048), seed=2)}
    packed, dense = saved(tmp_path, weights)
    sessions, gained = [], []
    for _ in range(3):  # the system may be too busy for some pages, or for all of a session
        before = in_huge_pages()
        sessions.append(with_library(packed))
        gained.append(in_huge_pages() - before)
    assert max(gained) > packed.stat().st_size * 3 // 4
    session, expected = sessions[-1], run(plain(dense), 3)
    np.testing.assert_allclose(run(session, 3), expected, rtol=1e-3, atol=1e-6 * abs(expected).max())


def test_options_that_are_none_are_told(tmp_path):
    path, _ = saved(tmp_path)
    with pytest.raises(KernelError, match=r"options is \{'threads': 1\}; give an onnxruntime\.SessionOptions"):
        load_session(path, options={"threads": 1})
