"""int8 behind torch's operator and module: which batches go where, other types, exported and compiled."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import packed_linear
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import pack_dense, unpack
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.kernel.packed_weight import PackedWeight
from ecoflap.core.kernel.route import route
from kernels import numbers, pruned, usable

types = pytest.mark.parametrize("dtype", TYPES, ids=str)
kinds = pytest.mark.parametrize("values", ["int8", "int8a8"])
needs_library = pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
MOST = {"int8": 2.0**-13, "int8a8": 0.04}
"""By how much of the largest number a product may be off for x that is rounded: these x are no larger than 4 scales."""


def near(y, x, packed, most, bias=None):
    """Beside the product of the decoded weights in float64, rounded to the type of y."""
    exact = x.double() @ unpack(packed).double().T + (0 if bias is None else bias.double())
    allowed = (most + torch.finfo(y.dtype).eps) * max(1.0, float(exact.abs().max()))
    return bool(((y.double() - exact).abs() <= allowed).all())


@types
@kinds
@pytest.mark.parametrize("shape", [(33,), (1, 33), (2, 3, 33), (0, 33), (2, 0, 33)])
def test_x_has_any_number_of_axes_and_lies_as_it_likes(dtype, values, shape):
    packed, bias = pack_dense(pruned(20, 33, 0.5, dtype), values=values), numbers(40, dtype=dtype)[::2]
    for x in (numbers(*shape, dtype=dtype), numbers(*shape[:-1], 66, dtype=dtype)[..., ::2]):
        y = torch.ops.ecoflap.packed_linear(x, packed, bias, 20)
        assert (y.shape, y.dtype) == ((*shape[:-1], 20), dtype)
        assert not y.numel() or near(y.reshape(-1, 20), x.reshape(-1, 33), packed, MOST[values], bias)


@types
@kinds
def test_a_large_batch_goes_by_panels_and_gives_nearly_the_same(dtype, values, monkeypatch, take_path):
    monkeypatch.setattr(packed_linear, "PANEL", 16 * 64 * dtype.itemsize * 2)
    packed, bias = pack_dense(pruned(100, 64, 0.5, dtype), values=values), numbers(100, dtype=dtype)
    x = numbers(1100, 64, dtype=dtype)
    take_path("torch")
    large = torch.ops.ecoflap.packed_linear(x, packed, bias, 100)
    assert near(large, x, packed, 2.0**-20, bias)
    take_path()
    small = torch.cat([torch.ops.ecoflap.packed_linear(row, packed, bias, 100) for row in x.split(50)])
    assert near(small, x, packed, MOST[values] + 2.0**-8 * (dtype == torch.bfloat16), bias)


@needs_library
def test_int8_goes_further_by_the_library_than_its_type(monkeypatch, take_path):
    take_path("portable")
    packed = pack_dense(pruned(16, 32, 0.5, torch.bfloat16), values="int8a8")
    most = route().batch(torch.bfloat16, "int8a8")
    assert most > route().batch(torch.bfloat16)
    asked = []
    monkeypatch.setattr(packed_linear, "unpack", lambda *given: asked.append(given) or unpack(*given))
    for rows, by_panels in ((most, False), (most + 1, True)):
        torch.ops.ecoflap.packed_linear(numbers(rows, 32, dtype=torch.bfloat16), packed, None, 16)
        assert bool(asked) is by_panels
        asked.clear()


@pytest.mark.parametrize("path", [*usable(), "torch"])
def test_what_does_not_fit_is_refused(path, take_path):
    take_path(path if usable() else "")
    packed, x = pack_dense(pruned(20, 30, 0.5, torch.bfloat16), values="int8"), torch.zeros(2, 30).bfloat16()
    multiply = torch.ops.ecoflap.packed_linear
    with pytest.raises(KernelError, match=r"are torch.bfloat16 and are given torch.float32: convert one, by \.to"):
        multiply(x.float(), packed, None, 20)
    with pytest.raises(KernelError, match=r"given a bias of torch.float16"):
        multiply(x, packed, torch.zeros(20).half(), 20)
    with pytest.raises(KernelError, match=r"are \[20, 30\] and are given 31 inputs, 20 outputs"):
        multiply(torch.zeros(2, 31).bfloat16(), packed, None, 20)


def layer(dtype=torch.float32, values="int8"):
    dense = nn.Linear(40, 24, dtype=dtype).requires_grad_(False)
    dense.weight.copy_(pruned(24, 40, 0.5, dtype))
    return PackedLinear(pack_dense(dense.weight, values=values), dense.bias)


@types
def test_a_module_is_cast_without_a_loss(dtype):
    module = layer()
    before, weight = module.packed, module.weight.clone()
    module.to(dtype)
    assert (module.dtype, module.bias.dtype, module.weight.dtype) == (dtype,) * 3
    assert torch.equal(module.weight, weight.to(dtype))
    assert near(
        module(numbers(3, 40, dtype=dtype)), numbers(3, 40, dtype=dtype), module.packed, MOST["int8"], module.bias
    )
    assert torch.equal(module.float().packed, before)


def test_its_weight_stands_for_the_dequantised_one(monkeypatch):
    module, x = layer(torch.bfloat16), numbers(2, 40, dtype=torch.bfloat16)
    weight = module.weight
    assert isinstance(weight, PackedWeight)
    assert (weight.shape, weight.dtype) == ((24, 40), torch.bfloat16)
    assert torch.equal(weight.clone(), unpack(module.packed))
    assert torch.equal(module.state_dict()["weight"], unpack(module.packed))
    monkeypatch.setattr("ecoflap.core.kernel.packed_weight.unpack", None)  # decoding it would fail
    assert torch.equal(torch.nn.functional.linear(x, weight, module.bias), module(x))


@kinds
def test_it_is_copied_and_says_what_it_is(values):
    module, x = layer(values=values), numbers(2, 40, dtype=torch.float32)
    again = copy.deepcopy(module)
    assert torch.equal(again(x), module(x))
    assert again.values == values
    assert repr(again).endswith(f", float32, {values})")


def test_a_gradient_is_refused_in_words():
    y = layer()(torch.zeros(2, 40, requires_grad=True))
    with pytest.raises(KernelError, match=r"can be run and not trained.*inference_mode.*weights='dense'"):
        y.sum().backward()


@kinds
def test_it_is_declared_exported_saved_and_read_again(values, tmp_path):
    module, x = layer(torch.bfloat16, values), numbers(3, 40, dtype=torch.bfloat16)
    torch.library.opcheck(torch.ops.ecoflap.packed_linear.default, (x, module.packed, module.bias, 24),
                          test_utils=("test_schema", "test_faketensor"))  # fmt: skip
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (x, x[:1], x.repeat(9, 1)):
        assert torch.equal(again(rows), module(rows))


COMPILED = """
import torch
from torch import nn
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_module import PackedLinear

layer = nn.Linear(40, 24).bfloat16().requires_grad_(False)
model = nn.Sequential(PackedLinear(pack_dense(layer.weight, values="int8"), layer.bias), nn.ReLU())
x = torch.randn(3, 40).bfloat16()
with torch.inference_mode():
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
"""


def test_it_is_compiled_whole():
    """Apart from these tests, whose checks of types torch cannot compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
