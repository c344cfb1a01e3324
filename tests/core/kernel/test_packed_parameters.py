"""Modules that hold parameters packed multiply as before: transformers' Conv1D, attentions, and q, k and v in one."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel import stand_in
from ecoflap.core.kernel.library import TYPES
from ecoflap.core.kernel.packed_parameters import hold_packed
from ecoflap.core.packed.forms import form_of, pack_into
from ecoflap.core.packed.pack_model import pack_model
from kernels import assert_right, numbers, pruned

WIDTH = 24  # no multiple of the 16 outputs of a block


def conv1d(dtype=torch.float32):
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(20, 30).to(dtype)
    layer.weight.data = pruned(20, 30, 0.5, dtype).T.contiguous()
    layer.bias.data = numbers(20, dtype=dtype)
    return layer


def attention(**keys):
    module = nn.MultiheadAttention(WIDTH, 4, **keys)
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(module.named_parameters()):
            filled = pruned(parameter.numel(), 1, 0.5 if "weight" in name else 0, parameter.dtype, seed)
            parameter.copy_(filled.view_as(parameter) / 3)
    return module


def packed(module, values="exact"):
    again = copy.deepcopy(module)
    pack_model(again, values)
    return again


def rounded(module):
    """A dense module with each row of its matrices rounded to 127 scales."""
    again = copy.deepcopy(module)
    for name, parameter in again.named_parameters():
        if name.endswith("weight"):
            scales = parameter.detach().double().abs().amax(1, keepdim=True) / 127
            parameter.data = ((parameter.detach().double() / scales).round() * scales).to(parameter.dtype)
    return again


@pytest.fixture
def never_decoded(monkeypatch):
    """Anything that decodes a stand-in as a whole would fail."""
    monkeypatch.setattr(stand_in, "_with_decoded", None)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_conv1d_multiplies_as_before(dtype, never_decoded):
    layer, x = conv1d(dtype), numbers(2, 3, 30, dtype=dtype)
    assert_right(packed(layer)(x).detach(), x, layer.weight.detach().T, layer.bias)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_conv1d_in_int8_has_a_scale_for_each_output(dtype, never_decoded):
    layer, x = conv1d(dtype), numbers(2, 30, dtype=dtype)
    weight = layer.weight.detach().double().T
    scales = weight.abs().amax(1, keepdim=True) / 127
    expected = x.double() @ ((weight / scales).round() * scales).T + layer.bias.double()
    y = packed(layer, "int8")(x).detach().double()
    assert torch.allclose(y, expected, atol=3e-2 if dtype != torch.float32 else 1e-3)
    assert not torch.equal(y, x.double() @ weight.T + layer.bias.double())


def test_a_conv1d_stays_one():
    layer = conv1d()
    again = packed(layer)
    assert isinstance(again, type(layer))
    assert again.weight.shape == (30, 20)
    assert again.weight.dtype == torch.float32
    assert torch.equal(again.weight.clone(), layer.weight)
    assert repr(again) == "PackedConv1D(weight: [30, 20], sparsity=0.513, float32)"
    x = numbers(2, 30, dtype=torch.float32)
    bias = layer.bias.detach()
    assert torch.allclose(torch.addmm(bias, x, again.weight, beta=2), torch.addmm(bias, x, layer.weight, beta=2))
    assert torch.allclose(torch.addmm(bias.expand(2, 20), x, again.weight), layer(x), atol=1e-6)


def test_its_weight_is_multiplied_packed_however_that_is_written(never_decoded):
    layer, x = conv1d(), numbers(2, 30, dtype=torch.float32)
    weight, dense = packed(layer).weight, layer.weight.detach().T
    for y in (x @ weight, torch.matmul(x, weight), x.mm(weight), functional.linear(x, weight.T)):
        assert_right(y, x, dense)
    for turned in (weight.t(), weight.mT, weight.transpose(0, 1), torch.transpose(weight, -1, 0)):
        assert_right(functional.linear(x, turned), x, dense)
    assert_right(torch.addmm(layer.bias.detach(), x, weight), x, dense, layer.bias)
    assert_right(x @ weight.T.T, x, dense)


@pytest.mark.parametrize("values", ["exact", "int8"])
@pytest.mark.parametrize(
    "keys", [{}, {"batch_first": True}, {"bias": False}, {"add_zero_attn": True, "add_bias_kv": True}], ids=str
)
@pytest.mark.parametrize("training", [False, True])
def test_an_attention_gives_what_it_gave(values, keys, training, never_decoded):
    module = attention(**keys).train(training)
    again, module = packed(module, values), module if values == "exact" else rounded(module)
    near = 1e-6 if values == "exact" else 2e-3
    x, y = numbers(3, 3, WIDTH, dtype=torch.float32), numbers(3, 3, WIDTH, dtype=torch.float32, seed=2)
    masks = {
        "none": {}, "unseen": {"need_weights": False}, "each": {"average_attn_weights": False},
        "padding": {"key_padding_mask": torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 0]]).bool()},
        "causal": {"attn_mask": torch.ones(3, 3).triu(1).bool(), "is_causal": True, "need_weights": False},
        "added": {"attn_mask": numbers(3, 3, dtype=torch.float32)},
    }  # fmt: skip
    for given in ((x, x, x), (x, y, y), (x, y, y.clone())):
        for asked in masks.values():
            ours, theirs = again(*given, **asked), module(*given, **asked)
            assert torch.allclose(ours[0], theirs[0], atol=near)
            assert (ours[1] is None) == (theirs[1] is None)
            assert ours[1] is None or torch.allclose(ours[1], theirs[1], atol=near)
    assert again(x[:, 0], x[:, 0], x[:, 0])[0].shape == (3, WIDTH)


@pytest.mark.parametrize("values", ["exact", "int8"])
def test_its_products_are_right(values):
    """q, k and v are one product where all read the same, and three where each reads its own."""
    module = attention()
    held = packed(module, values)
    weight, bias = module.in_proj_weight.detach(), module.in_proj_bias.detach()
    decoded = held.in_proj_weight.clone()
    scales = weight.double().abs().amax(1, keepdim=True) / 127
    expected = weight.double() if values == "exact" else (weight.double() / scales).round() * scales
    assert torch.allclose(decoded.double(), expected, atol=0 if values == "exact" else 1e-7)
    x = numbers(2, WIDTH, dtype=torch.float32)
    for part, where in zip(held.in_proj_weight.chunk(3), torch.arange(3 * WIDTH).chunk(3), strict=True):
        y = functional.linear(x, part, bias[where])
        assert torch.allclose(y.double(), x.double() @ decoded[where].double().T + bias[where], atol=2e-3)
    if values == "exact":
        assert_right(functional.linear(x, held.in_proj_weight, bias), x, weight, bias)


def test_rows_that_are_not_whole_matrices_are_decoded():
    held, x = packed(attention()), numbers(2, WIDTH, dtype=torch.float32)
    weight = held.in_proj_weight.clone()
    for parts, expected in (
        (held.in_proj_weight.split([10, 62]), weight.split([10, 62])),
        (held.in_proj_weight.chunk(2), weight.chunk(2)),
        (held.in_proj_weight.split(WIDTH, dim=1), weight.split(WIDTH, dim=1)),
    ):
        assert all(torch.equal(one, other) for one, other in zip(parts, expected, strict=True))
    assert torch.equal(held.in_proj_weight[3:5], weight[3:5])
    assert torch.allclose(x @ held.in_proj_weight[:24], x @ weight[:24])


def test_an_attention_with_matrices_of_their_own(never_decoded):
    module = attention(kdim=16, vdim=40, batch_first=True)
    again = packed(module)
    assert set(again.held) == {"q_proj_weight", "k_proj_weight", "v_proj_weight"}
    x = numbers(2, 3, WIDTH, dtype=torch.float32)
    read = numbers(2, 5, 16, dtype=torch.float32), numbers(2, 5, 40, dtype=torch.float32)
    assert torch.allclose(again(x, *read)[0], module(x, *read)[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which the dense one makes of padding
@pytest.mark.parametrize("training", [False, True])
def test_torchs_own_encoder_takes_no_way_around_it(training, never_decoded):
    """In eval mode it would hand its weights to one fused function, which knows nothing of packed ones."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand(parameter.shape) >= 0.5)
    module = nn.TransformerEncoder(layer, 2).train(training)
    again = packed(module)
    assert sum(hasattr(one, "held") for one in again.modules()) == 2
    x = numbers(2, 5, WIDTH, dtype=torch.float32)
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    with torch.no_grad():
        ours, theirs = again(x, src_key_padding_mask=padding), module(x, src_key_padding_mask=padding)
    real = ~padding[:, : ours.shape[1]]
    assert torch.allclose(ours[real], theirs[real], atol=1e-5)


def test_its_state_dict_is_the_dense_one():
    for module in (conv1d(), attention()):
        again = packed(module)
        state = nn.Sequential(again).state_dict()
        assert set(state) == {f"0.{name}" for name in module.state_dict()}
        assert all(torch.equal(state[f"0.{name}"], value) for name, value in module.state_dict().items())
        assert all(type(value) is torch.Tensor and value.is_contiguous() for value in state.values())


@pytest.mark.parametrize("values", ["exact", "int8"])
def test_it_takes_a_state_dict(values):
    for made in (conv1d, attention):
        module, other = made(), made()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(2)
        again, expected = packed(module, values), packed(other, values)
        assert not again.load_state_dict(other.state_dict()).missing_keys
        assert all(torch.equal(value, expected.state_dict()[name]) for name, value in again.state_dict().items())
    left_out = {name: value for name, value in other.state_dict().items() if name != "in_proj_weight"}
    assert again.load_state_dict(left_out, strict=False).missing_keys == ["in_proj_weight"]
    with pytest.raises(RuntimeError, match=r"size mismatch for in_proj_weight: \(3, 8\) where it is \(72, 24\)"):
        again.load_state_dict({**left_out, "in_proj_weight": torch.zeros(3, 8)})


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_it_is_cast(dtype):
    module, x = attention(), numbers(3, 2, WIDTH, dtype=dtype)
    again = packed(module).to(dtype)
    assert again.in_proj_weight.dtype == again.in_proj_bias.dtype == dtype
    state = module.to(dtype).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert torch.allclose(again(x, x, x)[0], module(x, x, x)[0], atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_int8_is_cast_and_comes_back():
    again = packed(attention(), "int8")
    before = again.state_dict()
    again.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(again.state_dict()["in_proj_weight"], before["in_proj_weight"])


def test_it_is_not_moved():
    for module in (conv1d(), attention()):
        with pytest.raises(KernelError, match=r"cannot be moved to meta.*weights='dense'"):
            packed(module).to("meta")
        with pytest.raises(KernelError, match=r"are float32, bfloat16, float16, and not torch.float64"):
            packed(module).double()


def test_it_is_copied_and_pickled():
    for module, x in ((conv1d(), (numbers(2, 30, dtype=torch.float32),)), (attention(), (torch.ones(3, WIDTH),) * 3)):
        again = packed(module).eval()
        for other in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
            assert type(other) is type(again)
            assert all(torch.equal(a, b) for a, b in zip(_tensors(other(*x)), _tensors(again(*x)), strict=True))
            name = next(iter(again.held))
            assert other.memory(name).data_ptr() != again.memory(name).data_ptr()


def _tensors(made):
    return made if isinstance(made, tuple) else (made,)


def test_it_takes_no_other_parameter_and_is_not_written_to():
    layer = packed(conv1d())
    for other in (nn.Parameter(torch.zeros(30, 20)), torch.zeros(30, 20)):
        with pytest.raises(KernelError, match="weight of this Conv1D is packed"):
            layer.weight = other
    with pytest.raises(KernelError, match="packed weights cannot be written to"):
        layer.weight.mul_(2)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_it_is_not_trained():
    for module, x in ((conv1d(), (torch.ones(2, 30),)), (attention(), (torch.ones(3, WIDTH),) * 3)):
        made = _tensors(packed(module)(*x))[0]
        with pytest.raises(KernelError, match="can be run and not trained"):
            made.sum().backward()


def test_autocast_casts_what_it_reads():
    layer, x = packed(conv1d()), numbers(2, 30, dtype=torch.bfloat16)
    held, q = packed(attention()), numbers(3, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert functional.linear(q, held.in_proj_weight).dtype == torch.float32


def test_an_attention_is_exported():
    module, q = packed(attention()).eval(), numbers(3, WIDTH, dtype=torch.float32)
    with torch.no_grad():
        run = torch.export.export(module, (q, q, q), strict=False).module()
        assert torch.equal(run(q, q, q)[0], module(q, q, q)[0])


def test_hooks_stay():
    layer, seen = conv1d(), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    packed(layer)(torch.ones(1, 30))
    assert seen == [1]


def test_a_parameter_after_the_other():
    """Experts have two; each is held beside the one that was held before."""
    module = attention(kdim=16, vdim=16)
    state = module.state_dict()
    for name in ("v_proj_weight", "q_proj_weight"):
        memory = torch.empty(1 << 16, dtype=torch.uint8)
        form = form_of(module, name)
        assert form is not None
        ends = pack_into(memory, form, module.get_parameter(name), "exact")
        hold_packed(module, name, memory[: ends[-1]], ends)
    assert list(module.held) == ["v_proj_weight", "q_proj_weight"]
    assert type(module).__mro__.count(nn.MultiheadAttention) == 1
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
