"""The operator: in torch's eager mode, exported, compiled, in a child of fork; and what it refuses."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ctypes import c_void_p, cast

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import packed_linear
from ecoflap.core.kernel.library import TYPES, openmp
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_module import PackedLinear
from kernels import assert_right, library, numbers, pruned, usable

types = pytest.mark.parametrize("dtype", TYPES, ids=str)


def linear(x, weight, bias=None):
    return torch.ops.ecoflap.packed_linear(x, pack_dense(weight), bias, len(weight))


@types
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7), (2, 0, 7)])
def test_x_has_any_number_of_axes(dtype, shape):
    weight, bias, x = pruned(5, 7, 0.5, dtype), numbers(5, dtype=dtype), numbers(*shape, dtype=dtype)
    y = linear(x, weight, bias)
    assert y.shape == (*shape[:-1], 5)
    assert_right(y.reshape(-1, 5), x.reshape(-1, 7), weight, bias)


@types
def test_x_and_bias_lie_as_they_like(dtype):
    weight, wide = pruned(6, 8, 0.5, dtype), numbers(12, 4, dtype=dtype)
    bias = numbers(12, dtype=dtype)[::2]
    for x in (wide.T[:, :8], wide[:8].T, wide[0, 0].expand(3, 8), numbers(1, 8, dtype=dtype).expand(5, 8)):
        assert_right(linear(x, weight, bias), x, weight, bias)


@types
def test_a_large_batch_goes_by_panels(dtype, monkeypatch, take_path):
    take_path("torch")
    monkeypatch.setattr(packed_linear, "PANEL", 16 * 64 * dtype.itemsize * 2)
    weight, bias = pruned(100, 64, 0.5, dtype), numbers(100, dtype=dtype)
    x = numbers(1100, 64, dtype=dtype)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert torch.allclose(linear(x, weight, bias).float(), expected.float(), atol=1e-5, rtol=2 * torch.finfo(dtype).eps)


@types
def test_memory_that_begins_anywhere_is_read(dtype):
    weight, x = pruned(20, 30, 0.5, dtype), numbers(2, 30, dtype=dtype)
    packed = pack_dense(weight)
    odd = torch.empty(len(packed) + 3, dtype=torch.uint8)[3:].copy_(packed)
    assert_right(torch.ops.ecoflap.packed_linear(x, odd, None, 20), x, weight)


@pytest.mark.parametrize("path", [*usable(), "torch"])
def test_what_does_not_fit_is_refused(path, take_path):
    take_path(path if usable() else "")
    packed, x = pack_dense(pruned(20, 30, 0.5, torch.float32)), torch.zeros(2, 30)
    multiply = torch.ops.ecoflap.packed_linear
    with pytest.raises(KernelError, match=r"are torch.float32 and are given torch.bfloat16: convert one, by \.to"):
        multiply(x.bfloat16(), packed, None, 20)
    with pytest.raises(KernelError, match=r"are torch.float32 and are given torch.float64"):
        multiply(x.double(), packed, None, 20)
    with pytest.raises(KernelError, match=r"given a bias of torch.float16"):
        multiply(x, packed, torch.zeros(20).half(), 20)
    with pytest.raises(KernelError, match=r"are \[20, 30\] and are given 31 inputs, 20 outputs"):
        multiply(torch.zeros(2, 31), packed, None, 20)
    with pytest.raises(KernelError, match="30 inputs, 21 outputs"):
        multiply(x, packed, None, 21)
    with pytest.raises(KernelError, match=r"a bias of \(7,\)"):
        multiply(x, packed, torch.zeros(7), 20)


def test_a_gradient_is_refused_in_words():
    x = torch.zeros(2, 30, requires_grad=True)
    y = linear(x, pruned(20, 30, 0.5, torch.float32))
    with pytest.raises(KernelError, match=r"can be run and not trained.*inference_mode.*weights='dense'"):
        y.sum().backward()


def looked_on():
    """Give whatever has to see an operator, each with a way to tell that it did."""
    names = []

    class OfOperators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **kwargs or {})

    class OfFunctions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            names.append(str(func))
            return func(*args, **kwargs or {})

    @contextmanager
    def profiled():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            yield
        names.extend(event.key for event in profile.key_averages())

    return names, {"operators": OfOperators, "functions": OfFunctions, "profile": profiled}


@pytest.mark.parametrize("looker", ["operators", "functions", "profile"])
def test_whoever_looks_on_sees_the_operator(looker):
    weight, x = pruned(20, 30, 0.5, torch.float32), numbers(2, 30, dtype=torch.float32)
    packed, (names, lookers) = pack_dense(weight), looked_on()
    with torch.no_grad(), lookers[looker]():
        y = packed_linear.multiplied(x, packed, None, 20)
    assert any("packed_linear" in name for name in names)
    assert_right(y, x, weight)


@pytest.fixture
def past(monkeypatch):
    """Count the products that go past the dispatcher."""
    products, multiply = [], packed_linear.packed_linear
    monkeypatch.setattr(packed_linear, "packed_linear", lambda *given: products.append(given) or multiply(*given))
    return products


@types
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_nobody_looks_on_the_dispatcher_is_passed_by(dtype, mode, past):
    weight, bias, x = pruned(20, 30, 0.5, dtype), numbers(20, dtype=dtype), numbers(2, 3, 30, dtype=dtype)
    layer = PackedLinear(pack_dense(weight), nn.Parameter(bias))
    with mode():
        y = layer(x)
        assert len(past) == 1
        assert torch.equal(y, torch.ops.ecoflap.packed_linear(x, layer.packed, layer.bias, 20))
    assert y.is_inference() == (mode is torch.inference_mode)
    assert_right(y.reshape(6, 20), x.reshape(6, 30), weight, bias)


def test_what_the_dispatcher_has_to_see_is_not_passed_by(past):
    """A number with its sign turned in mind alone, a tensor without memory, one of a subclass."""
    weight, x = pruned(20, 30, 0.5, torch.float32), numbers(2, 30, dtype=torch.float32)
    packed = pack_dense(weight)
    layer, kept = PackedLinear(packed, None).requires_grad_(False), nn.Parameter(x)
    assert_right(layer(x), x, weight)  # with gradients
    with torch.no_grad():
        turned = torch._neg_view(x)
        assert turned.is_neg()
        assert_right(layer(turned), -x, weight)
        assert layer(x.to("meta")).is_meta
        assert_right(layer(kept), x, weight)
        with pytest.raises(NotImplementedError, match="SparseCPU"):
            layer(x.to_sparse())
        assert_right(layer(torch._efficientzerotensor(x.shape)), torch.zeros_like(x), weight)
    assert not past


def test_a_bias_is_looked_at_as_closely(past):
    weight, bias, x = (numbers(*shape, dtype=torch.float32) for shape in ((20, 30), (20,), (2, 30)))
    weight[::2] = 0
    packed = pack_dense(weight)
    with torch.no_grad():
        assert_right(packed_linear.multiplied(x, packed, torch._neg_view(bias), 20), x, weight, -bias)
        assert not past
        assert_right(packed_linear.multiplied(x, packed, nn.Parameter(bias), 20), x, weight, bias)
        assert len(past) == 1
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            pretended = mode.from_tensor(bias)
        with suppress(RuntimeError, TypeError):  # whatever torch says to one that has no numbers
            packed_linear.multiplied(x, packed, pretended, 20)
        assert len(past) == 1


class Doubled(nn.Module):
    def forward(self, bias):
        return 2 * bias


def test_a_bias_that_is_computed_is_added():
    """A parametrization takes the parameter out of its module, and gives what it makes of it in its place."""
    weight, bias, x = (numbers(*shape, dtype=torch.float32) for shape in ((20, 30), (20,), (2, 30)))
    weight[::2] = 0
    layer = PackedLinear(pack_dense(weight), nn.Parameter(bias))
    register_parametrization(layer, "bias", Doubled())
    with torch.no_grad():
        assert_right(layer(x), x, weight, 2 * bias)


@pytest.mark.filterwarnings("ignore:.*jit.script")  # which torch 2.15 itself calls for forward derivatives
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_a_derivative_that_goes_forward_is_refused_in_words(mode):
    """An operator of which nothing is said has none for torch, which would call it zero."""
    layer, x = PackedLinear(pack_dense(pruned(20, 30, 0.5, torch.float32)), None), torch.ones(2, 30)
    with mode():
        with pytest.raises(KernelError, match="it can be run and not trained"):
            torch.func.jvp(layer, (x,), (x,))
        with forward_ad.dual_level():
            with pytest.raises(KernelError, match="it can be run and not trained"):
                layer(forward_ad.make_dual(x, x))
            assert layer(x).shape == (2, 20)


@pytest.mark.filterwarnings("ignore:.*jit.script")  # which torch 2.15 itself calls for forward derivatives
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of an operator that vmap maps row by row
def test_a_derivative_by_the_bias_is_refused_and_one_beside_a_mapped_layer_is_not():
    weight, x = pruned(20, 30, 0.5, torch.float32), numbers(2, 30, dtype=torch.float32)
    layer = PackedLinear(pack_dense(weight), nn.Parameter(torch.ones(20))).requires_grad_(False)
    with pytest.raises(KernelError, match="it can be run and not trained"):
        torch.func.jvp(lambda bias: functional_call(layer, {"bias": bias}, (x,)), (layer.bias,), (x[0, :20],))
    with pytest.raises(KernelError, match="it can be run and not trained"):
        torch.func.jvp(torch.vmap(layer), (x,), (x,))
    beside, ones = torch.ones(2, 20), torch.ones(2, 20)
    y, tangent = torch.func.jvp(lambda one: torch.vmap(layer)(x) + one, (beside,), (ones,))
    assert_right(y - beside, x, weight, layer.bias)
    assert torch.equal(tangent, ones)


def test_the_operator_is_declared_as_it_is():
    packed, x = pack_dense(pruned(20, 30, 0.5, torch.float32)), torch.zeros(2, 3, 30)
    for bias in (None, torch.zeros(20)):
        torch.library.opcheck(torch.ops.ecoflap.packed_linear.default, (x, packed, bias, 20),
                              test_utils=("test_schema", "test_faketensor"))  # fmt: skip


@pytest.fixture
def model():
    first, second = nn.Linear(40, 24).bfloat16(), nn.Linear(24, 10).bfloat16()
    packed = [PackedLinear(pack_dense(pruned(*layer.weight.shape, 0.5, torch.bfloat16)), layer.bias)
              for layer in (first, second)]  # fmt: skip
    return nn.Sequential(packed[0], nn.ReLU(), packed[1]).requires_grad_(False)


def test_it_is_exported_saved_and_read_again(model, tmp_path):
    x = numbers(3, 40, dtype=torch.bfloat16)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=False)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("ecoflap.packed_linear.default") == 2
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (x, x[:1], x.repeat(9, 1)):
        assert torch.equal(again(rows), model(rows))


COMPILED = """
import torch
from torch import nn
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_module import PackedLinear

layer = nn.Linear(40, 24).bfloat16().requires_grad_(False)
packed = PackedLinear(pack_dense(layer.weight.clamp(min=0)), layer.bias)


class LooksAtWeight(nn.Module):
    # T5 asks for the type of a weight, EVA multiplies with one itself.
    def __init__(self):
        super().__init__()
        self.layer = packed

    def forward(self, x):
        x = x.to(self.layer.weight.dtype)
        return self.layer(x) + nn.functional.linear(x, self.layer.weight)


model = nn.Sequential(LooksAtWeight(), nn.ReLU())
x = torch.randn(3, 40).bfloat16()
with torch.inference_mode():
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), packed(x))
"""


COMPILED_TO_TRAIN = """
import sys
import torch
from torch import nn
from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_module import PackedLinear

layer = nn.Linear(40, 24)
model = nn.Sequential(nn.Linear(16, 40), PackedLinear(pack_dense(layer.weight.clamp(min=0)), layer.bias))
x = torch.randn(3, 16)
y = torch.compile(model, fullgraph=True, backend=sys.argv[1])(x)
torch.testing.assert_close(y, model(x))
try:
    y.sum().backward()
except KernelError as error:
    print(error)
"""


def run_apart(script, *arguments):
    """Apart from these tests, whose checks of types torch cannot compile."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_compiled_whole():
    run_apart(COMPILED)


without_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, without_compiler])])
def test_what_is_compiled_with_gradients_runs_and_is_not_trained(backend):
    assert "can be run and not trained" in run_apart(COMPILED_TO_TRAIN, backend)


def test_a_gradient_of_a_bias_is_refused_too():
    bias = torch.zeros(20, requires_grad=True)
    y = linear(torch.zeros(2, 30), pruned(20, 30, 0.5, torch.float32), bias)
    with pytest.raises(KernelError, match="can be run and not trained"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(not usable(), reason="without the library torch multiplies, whose own threads a child waits for")
def test_a_child_of_fork_multiplies_too():
    """Threads are not there any more in a child: it must not wait for them."""
    weight, x = pruned(2000, 300, 0.5, torch.float32), numbers(8, 300, dtype=torch.float32)
    packed = pack_dense(weight)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = torch.ops.ecoflap.packed_linear(x, packed, None, 2000)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(torch.ops.ecoflap.packed_linear(x, packed, None, 2000), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def own_threads():
    """The library's own threads, and three of them, in the place of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    library().functions.ecoflap_run_on(None)
    yield
    torch.set_num_threads(before)
    library().functions.ecoflap_run_on(None if openmp() is None else cast(openmp(), c_void_p))


@pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
def test_threads_of_its_own_give_the_same_as_those_of_torch(request):
    weight, x = pruned(2000, 300, 0.5, torch.float32), numbers(8, 300, dtype=torch.float32)
    packed = pack_dense(weight)
    expected = torch.ops.ecoflap.packed_linear(x, packed, None, 2000)
    request.getfixturevalue("own_threads")
    for _ in range(20):
        assert torch.equal(torch.ops.ecoflap.packed_linear(x, packed, None, 2000), expected)


@pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
@pytest.mark.parametrize("whose", ["torch", "its own"])
def test_two_models_are_run_at_once(whose, request):
    """Each in a thread of its own, on the same threads beneath, one row and prompts by turns."""
    if whose == "its own":
        request.getfixturevalue("own_threads")
    packed = [pack_dense(pruned(2000, 300, share, torch.float32)) for share in (0.5, 0.7)]
    inputs = [numbers(rows, 300, dtype=torch.float32) for rows in (1, 40)]
    expected = [[torch.ops.ecoflap.packed_linear(x, one, None, 2000) for x in inputs] for one in packed]

    def run(number):
        for _ in range(30):
            for x, right in zip(inputs, expected[number], strict=True):
                assert torch.equal(torch.ops.ecoflap.packed_linear(x, packed[number], None, 2000), right)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


WITHOUT_MORE_THREADS = """
import resource
from pathlib import Path

import torch
from ecoflap.core.kernel.library import opened
from ecoflap.core.kernel.matrix import pack_dense

weight, x, y = torch.randn(4096, 1024).clamp(min=0), torch.randn(1, 1024), torch.empty(1, 4096)
packed, library = pack_dense(weight), opened()
library.functions.ecoflap_run_on(None)
path = next(path.number for path in library.paths() if not path.lacks)
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (1 << 20)  # less than one thread's stack
matrix = packed.data_ptr(), len(packed), 0, 4096, 1024
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
library.call("packed_linear", path, *matrix, x.data_ptr(), 1, 1024, None, y.data_ptr(), 4)
resource.setrlimit(resource.RLIMIT_AS, before)
torch.testing.assert_close(y, x @ weight.T, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is put on by what Linux says of a process")
def test_where_the_system_gives_no_more_threads_those_there_are_multiply():
    done = subprocess.run([sys.executable, "-c", WITHOUT_MORE_THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
