"""2:4 matrices on a GPU: which can be, checked anywhere; how they multiply, where there is a GPU."""

import pytest
import torch
from torch import nn

import ecoflap
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

    @types
    def test_it_is_neither_moved_nor_cast(self, dtype):
        packed = self.model(dtype)
        ecoflap.pack_model(packed)
        assert packed.cuda() is packed
        for convert in (packed.cpu, packed.float):
            with pytest.raises(KernelError, match="neither moved nor cast"):
                convert()
