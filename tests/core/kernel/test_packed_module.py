"""A module with packed weights does what an ``nn.Linear`` does, or says that it does not."""

import copy
from inspect import unwrap

import pytest
import torch
from torch import nn

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_linear import packed_linear
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.kernel.packed_weight import PackedWeight
from kernels import assert_right, numbers, pruned


def dense(dtype=torch.float32, bias=True):
    layer = nn.Linear(30, 20, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(pruned(20, 30, 0.5, dtype))
    return layer


def packed(layer):
    return PackedLinear(pack_dense(layer.weight), layer.bias)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_multiplies_as_the_dense_one(dtype, bias):
    layer, x = dense(dtype, bias), numbers(2, 30, dtype=dtype)
    assert_right(packed(layer)(x).detach(), x, layer.weight.detach(), layer.bias)


def test_its_state_dict_is_the_dense_one():
    layer = dense()
    state = nn.Sequential(packed(layer)).state_dict()
    assert list(state) == ["0.weight", "0.bias"]
    assert all(torch.equal(state[f"0.{name}"], value) for name, value in layer.state_dict().items())
    assert type(state["0.weight"]) is torch.Tensor


def test_it_takes_a_state_dict():
    layer, other = packed(dense()), nn.Linear(30, 20)
    assert not layer.load_state_dict(other.state_dict()).missing_keys
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(3, 30\) where it is \(20, 30\)"):
        layer.load_state_dict({"weight": torch.zeros(3, 30), "bias": torch.zeros(20)})
    assert layer.load_state_dict({"bias": torch.zeros(20)}, strict=False).missing_keys == ["weight"]
    with pytest.raises(RuntimeError, match="weight is on the meta device, and has no numbers to pack"):
        layer.load_state_dict({"weight": torch.zeros(20, 30, device="meta"), "bias": torch.zeros(20)})
    assert torch.equal(layer.weight, other.weight)


def test_its_weight_is_not_taken_out():
    layer = packed(dense())
    with pytest.raises(KernelError, match="the weight of this layer is packed, and cannot be taken out"):
        del layer.weight


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_cast(dtype):
    layer, x = dense(), numbers(2, 30, dtype=dtype)
    cast = packed(layer).to(dtype)
    assert (cast.dtype, cast.bias.dtype, cast.weight.dtype) == (dtype,) * 3
    weight, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    assert_right(cast(x).detach(), x, weight, bias)


def test_it_is_not_moved():
    with pytest.raises(KernelError, match=r"cannot be moved to meta.*weights='dense'"):
        packed(dense()).to("meta")
    with pytest.raises(KernelError, match=r"are float32, bfloat16, float16, and not torch.float64"):
        packed(dense()).double()
    assert packed(dense()).cpu().float().dtype == torch.float32


def test_it_is_copied():
    layer, x = packed(dense()), numbers(2, 30, dtype=torch.float32)
    again = copy.deepcopy(layer)
    assert torch.equal(again(x), layer(x))
    assert again.packed.data_ptr() != layer.packed.data_ptr()


def test_it_takes_no_other_parameter():
    layer = packed(dense())
    for other in (nn.Parameter(torch.zeros(20, 30)), torch.zeros(20, 30), None):
        with pytest.raises(KernelError, match=r"put an nn\.Linear in its place"):
            layer.weight = other
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_a_number_is_no_row():
    layer, said = packed(dense()), "a single number: x has no axis"
    with pytest.raises(KernelError, match=said):
        unwrap(packed_linear)(torch.tensor(1.0), layer.packed, None, 20)  # as it is where no test checks shapes
    with pytest.raises(KernelError, match=said), torch.device("meta"):
        torch.ops.ecoflap.packed_linear(torch.tensor(1.0), torch.empty(8, dtype=torch.uint8), None, 20)


def test_it_says_what_it_is():
    assert repr(packed(dense())) == "PackedLinear(in_features=30, out_features=20, bias=True, sparsity=0.513, float32)"


def test_autocast_casts_what_it_reads():
    layer, x = packed(dense()), numbers(2, 30, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_its_weight_is_decoded_when_it_is_used():
    layer = dense(torch.bfloat16)
    weight = packed(layer).weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.shape, weight.dtype, weight.ndim) == ((20, 30), torch.bfloat16, 2)
    assert weight.device == layer.weight.device
    assert (weight.size(0), weight.dim(), weight.numel(), weight.requires_grad) == (20, 2, 600, False)
    assert weight.is_floating_point()
    assert torch.equal(weight, layer.weight)
    assert torch.equal(weight.float() + 1, layer.weight.float() + 1)
    assert weight.float().numpy().sum() == pytest.approx(float(layer.weight.detach().float().sum()), abs=1e-4)
    assert repr(weight) == repr(layer.weight.detach())
    assert type(weight.clone()) is torch.Tensor
    assert torch.equal(weight[3], layer.weight[3])


def test_a_product_with_its_weight_is_the_packed_one(monkeypatch):
    layer, x = dense(), numbers(2, 30, dtype=torch.float32)
    weight = packed(layer).weight
    monkeypatch.setattr("ecoflap.core.kernel.packed_weight.unpack", None)  # decoding it would fail
    linear = torch.nn.functional.linear
    assert_right(linear(x, weight), x, layer.weight.detach())
    assert_right(linear(x, weight, bias=layer.bias).detach(), x, layer.weight.detach(), layer.bias)
    assert isinstance(weight, PackedWeight)


def test_products_of_other_kinds_decode_it():
    layer, x = dense(), numbers(2, 20, dtype=torch.float32)
    weight = packed(layer).weight
    assert torch.allclose(x @ weight, x @ layer.weight)
    assert torch.allclose(torch.nn.functional.linear(weight, layer.weight), layer.weight @ layer.weight.T)


def test_parts_of_its_weight_are_read_as_any_tensor(tmp_path):
    layer, x = dense(), numbers(2, 30, dtype=torch.float32)
    weight = packed(layer).weight
    looks = (
        lambda of: of.data,
        lambda of: of[3],
        lambda of: of[:, ::2],
        lambda of: of.view(-1).numpy()[5:9],
        lambda of: of.unbind()[4] * 2,
        lambda of: of.T.contiguous(),
        lambda of: torch.stack(of.split(10)),
        lambda of: torch.nn.functional.linear(x, of[:8]),
    )
    for look in looks:
        torch.testing.assert_close(look(weight), look(layer.weight.detach()), rtol=0, atol=0)
    own = weight[3].clone()
    assert own.zero_().sum() == 0
    torch.save(weight[3], tmp_path / "row.pt")
    assert torch.equal(torch.load(tmp_path / "row.pt", weights_only=True), layer.weight[3])


def test_a_view_of_its_weight_may_become_the_data_of_another_tensor():
    """torch takes its memory, and asks nobody."""
    layer, other, x = dense(), dense(), numbers(2, 30, dtype=torch.float32)
    weight = packed(layer).weight
    other.weight.data, other.bias = weight.data, layer.bias
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    other.weight.data.zero_()
    assert torch.equal(weight, layer.weight)
    fixed = nn.Parameter(weight[:4], requires_grad=False)
    torch.testing.assert_close(fixed @ x.T, layer.weight[:4] @ x.T, rtol=0, atol=0)


def test_products_with_its_weight_may_be_mapped_over_a_batch():
    layer, x = dense(), numbers(3, 30, dtype=torch.float32)
    weight = packed(layer).weight
    torch.testing.assert_close(torch.vmap(lambda row: weight.data @ row)(x), x @ layer.weight.T)
    torch.testing.assert_close(torch.vmap(lambda row: weight * row)(x), layer.weight * x[:, None])


def test_its_weight_cannot_be_written_to():
    """What was written would be lost in silence."""
    layer = packed(dense())
    weight = layer.weight
    for write in (
        lambda: weight.zero_(),
        lambda: weight.mul_(2),
        lambda: weight.__imul__(2),
        lambda: weight.__setitem__(0, 1.0),
        lambda: setattr(weight, "data", torch.zeros(20, 30)),
        lambda: nn.init.normal_(weight),
        lambda: weight.data.zero_(),
        lambda: weight.data.__setitem__(slice(None), 1.0),
        lambda: weight.detach().zero_(),
        lambda: weight[0].zero_(),
        lambda: weight[3][2:].add_(1),
        lambda: weight.view(-1).fill_(1.0),
        lambda: weight.T.zero_(),
        lambda: weight.split(7)[0].zero_(),
        lambda: torch.add(weight, 1, out=weight),
        lambda: torch._foreach_mul_([weight, weight.data], 2),
        lambda: torch.nn.functional.relu(weight, inplace=True),
        lambda: weight.requires_grad_(),
        lambda: nn.Parameter(weight.data),
        lambda: torch.sort(weight, out=(weight.data, torch.empty(0, dtype=torch.int64))),
    ):
        with pytest.raises(KernelError, match="packed weights cannot be written to"):
            write()
    assert isinstance(layer, nn.Linear)
