"""2:4 matrices on a GPU: which can be, checked anywhere; how they multiply, where there is a GPU."""

import re
import warnings

import pytest
import torch
from torch import nn

import ecoflap
import ecoflap.core.packed.two_four as two_four_module
from ecoflap.core.errors import KernelError, ModelError
from ecoflap.core.packed.two_four import TwoFourLinear, run_two_four, why_not_two_four

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU with sparse cores"
    ),
]
types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def two_four(outputs=64, inputs=128, dtype=torch.bfloat16):
    """Of four in a row the two largest are kept."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3)).to(dtype)
    fours = weight.reshape(outputs, -1, 4)
    least = fours.abs().argsort(dim=-1)[..., :2]
    return fours.scatter(-1, least, 0).reshape(outputs, inputs)


@types
def test_what_can_be(dtype):
    assert why_not_two_four(two_four(dtype=dtype)) == ""
    assert why_not_two_four(torch.zeros(32, 64, dtype=dtype)) == ""


def test_what_cannot_and_why():
    weight = two_four()
    assert "float32, and not in 16 bits" in why_not_two_four(weight.float())
    assert "it is 63 × 128, and not a multiple of 32 × 64" in why_not_two_four(weight[1:])
    assert "it is 64 × 96" in why_not_two_four(weight[:, :96])
    weight[5, 8:11] = 1
    assert "prune it with pattern 2:4" in why_not_two_four(weight)


def test_a_model_on_the_cpu_is_refused():
    with pytest.raises(ModelError, match="is on GPUs whole, and this is on cpu"):
        run_two_four(nn.Linear(64, 64))


@pytest.fixture
def taken_for_gpus(monkeypatch):
    """Nothing that runs here multiplies 2:4: what is not is found out on the CPU."""
    monkeypatch.setattr(two_four_module, "_refuse_other_devices", lambda devices: None)


def half_zeros(dtype=torch.bfloat16, inputs=128):
    """Pruned by size alone, so that some four weights hold three that stay."""
    layer = nn.Linear(inputs, 64)
    layer.weight.data = layer.weight.data.masked_fill(layer.weight.abs() <= layer.weight.abs().median(), 0)
    return layer.to(dtype)


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([nn.Linear(128, 64), half_zeros(), half_zeros(inputs=96)], r"1\.weight: more than two of four weights"),
        ([half_zeros(torch.float32), half_zeros()], r"0\.weight: it is float32, and not in 16 bits"),
        ([nn.Linear(128, 64)], r"no nn\.Linear of it is half zeros"),
    ],
)
def test_where_nothing_runs_packed_it_is_said_once(layers, why, taken_for_gpus):
    model = nn.Sequential(*layers)
    with pytest.warns(UserWarning, match="runs packed on the GPU") as told:
        packing = run_two_four(model)
    (warning,) = told
    said = str(warning.message)
    assert re.match(rf"no matrix of this model runs packed on the GPU, all stay dense\. {why}", said)
    assert "device='cpu'" in said
    assert "prune it 2:4" in said
    assert packing.packed == []
    assert list(model) == layers


def test_where_something_runs_packed_nothing_is_said(taken_for_gpus, monkeypatch):
    monkeypatch.setattr(two_four_module, "TwoFourLinear", lambda dense: nn.Identity())  # which needs a GPU
    model = nn.Sequential(half_zeros(), nn.Linear(128, 64).bfloat16())
    model[1].weight.data = two_four()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packing = run_two_four(model)
    assert packing.packed == ["1.weight"]
    assert list(packing.dense) == ["0.weight"]


class Compressed(torch.Tensor):
    """What stands for a compressed tensor here: nothing is copied into it, as into torch's."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.copy_:
            raise NotImplementedError("no copies into what is compressed")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_dense_state_dict_is_taken_and_what_lacks_is_named(monkeypatch):
    compress = lambda weight: nn.Parameter(weight.as_subclass(Compressed), requires_grad=False)  # noqa: E731
    monkeypatch.setattr(two_four_module, "_compressed", compress)
    layer = nn.Linear(128, 64).bfloat16()
    layer.weight.data = two_four()
    packed = TwoFourLinear(layer)
    packed.load_state_dict({"weight": 2 * two_four(), "bias": torch.ones(64)})
    assert torch.equal(packed.weight.as_subclass(torch.Tensor), 2 * two_four())
    assert (packed.bias == 1).all()
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        packed.load_state_dict({"bias": torch.ones(64)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "more"'):
        packed.load_state_dict({"weight": two_four(), "bias": torch.ones(64), "more": torch.ones(1)})


class TestOnAGpu:
    pytestmark = on_gpu

    def model(self, dtype):
        model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.Linear(64, 32))
        model.to("cuda", dtype)
        model[0].weight.data = two_four(dtype=dtype).cuda()
        model[2].weight.data = two_four(64, 64, dtype).cuda()
        return model.eval().requires_grad_(False)

    @types
    @pytest.mark.parametrize("batch", [1, 7, 64])
    def test_it_multiplies_as_the_dense_one(self, dtype, batch):
        dense = self.model(dtype)
        x = torch.randn(batch, 128, device="cuda", dtype=dtype)
        expected = dense.double()(x.double())
        packed = self.model(dtype)
        packed.load_state_dict({name: value.to(dtype) for name, value in dense.state_dict().items()})
        packing = ecoflap.pack_model(packed)
        assert packing.packed == ["0.weight", "2.weight"]
        assert isinstance(packed[0], TwoFourLinear)
        assert (packed(x).double() - expected).abs().max() <= 2e-2 * expected.abs().max()

    @types
    def test_its_state_dict_is_dense(self, dtype):
        dense, packed = self.model(dtype), self.model(dtype)
        packed.load_state_dict(dense.state_dict())
        ecoflap.pack_model(packed)
        again = packed.state_dict()
        assert all(torch.equal(again[name], value) for name, value in dense.state_dict().items())
        packed.load_state_dict({name: 2 * value for name, value in again.items()})
        assert torch.equal(packed.state_dict()["0.weight"], 2 * dense[0].weight)
        with pytest.raises(KernelError, match="prune it with pattern 2:4"):
            packed.load_state_dict({name: torch.ones_like(value) for name, value in again.items()})

    def test_what_is_pruned_in_another_way_stays_dense_with_a_warning(self):
        model = nn.Sequential(half_zeros()).cuda()
        with pytest.warns(UserWarning, match=r"no matrix .* 0\.weight: more than two of four"):
            ecoflap.pack_model(model)
        assert type(model[0]) is nn.Linear

    @types
    def test_it_is_neither_moved_nor_cast(self, dtype):
        packed = self.model(dtype)
        ecoflap.pack_model(packed)
        assert packed.cuda() is packed
        for convert in (packed.cpu, packed.float):
            with pytest.raises(KernelError, match="neither moved nor cast"):
                convert()
