"""Weights that are trained: their masks hold whatever an optimiser does, and all else is as it was."""

import copy

import pytest
import torch
from torch import nn

from ecoflap.core.disk.on_disk import lies_on_disk
from ecoflap.core.forward.placement import Placement
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.refining.trained_weights import TrainedWeights

FLOAT32 = Placement(torch.float32)


class Two(nn.Module):
    """A matrix, a stack of two of which one is a layer, and a bias that is none, drawn in bfloat16."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 6, generator=generator).bfloat16())
        self.stack = nn.Parameter(torch.randn(2, 6, 4, generator=generator).bfloat16(), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(4, generator=generator).bfloat16())

    def forward(self, x):
        return (x @ self.weight.T + self.bias) @ self.stack[1].T @ self.stack[0]


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def module(request):
    """It is held in float32 beside its own weights, or trained in place."""
    return Two().to(request.param)


@pytest.fixture
def trained(module):
    layers = [Layer("weight", module), Layer("stack[1]", module, "stack", part=1, transposed=True)]
    masks = {"weight": torch.arange(24).reshape(4, 6) % 3 > 0, "stack[1]": torch.arange(24).reshape(4, 6) % 2 > 0}
    module.weight.data.mul_(masks["weight"])
    module.stack.data[1].mul_(masks["stack[1]"].T)
    return TrainedWeights(layers, masks), masks


def test_adam_moves_every_kept_weight_and_no_other(module, trained):
    weights, masks = trained
    before, dtype = {name: value.data.clone() for name, value in module.named_parameters()}, module.weight.dtype
    flags = {name: value.requires_grad for name, value in module.named_parameters()}
    with weights.held(module, FLOAT32):
        assert all(parameter.dtype == torch.float32 for parameter in weights.parameters)
        optimiser = torch.optim.AdamW(weights.parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            module(torch.ones(5, 6) * torch.arange(1, 7)).square().sum().backward()
            optimiser.step()
    assert torch.equal(module.weight != 0, masks["weight"])
    assert (module.weight != before["weight"])[masks["weight"]].all()
    assert torch.equal(module.stack[1].T != 0, masks["stack[1]"])
    assert module.weight.dtype == dtype
    assert torch.equal(module.stack[0], before["stack"][0])
    assert torch.equal(module.bias, before["bias"])
    assert {name: value.requires_grad for name, value in module.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_optimiser_that_writes_everywhere_leaves_pruned_weights_zero(module, trained):
    weights, masks = trained
    other = module.stack.data[0].clone()
    with weights.held(module, FLOAT32):
        for parameter in weights.parameters:
            parameter.data.sub_(7)
    assert torch.equal(module.weight == 0, ~masks["weight"])
    assert torch.equal(module.stack[0], other)
    assert not torch.signbit(module.weight[~masks["weight"]]).any()


def test_what_is_remembered_comes_back(module, trained):
    weights, _ = trained
    before = module.weight.data.clone()
    with weights.held(module, FLOAT32):
        weights.remember()
        module.weight.data.fill_(torch.nan)
        assert not weights.are_finite()
        weights.restore()
        assert weights.are_finite()
    assert torch.equal(module.weight, before)


def test_what_is_remembered_later_comes_back_as_it_was_then(module, trained):
    """Also where nothing but the signs of zeros is other than it was at first."""
    weights, masks = trained
    with weights.held(module, FLOAT32):
        for change in (lambda data: data[~masks["weight"]].neg(), lambda data: data[~masks["weight"]] + 7):
            weights.remember()
            module.weight.data[~masks["weight"]] = change(module.weight.data)
            weights.remember()
            then = module.weight.data.clone()
            module.weight.data.fill_(torch.nan)
            weights.restore()
            assert torch.equal(module.weight.data.view(torch.int32), then.view(torch.int32))


def test_an_error_leaves_the_weights_as_they_were(module, trained):
    weights, _ = trained
    before = {name: value.data.clone() for name, value in module.named_parameters()}

    def spoil():
        with weights.held(module, FLOAT32):
            module.weight.data.fill_(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_a_float32_module_is_trained_in_place(module, trained):
    module.float()
    weights = TrainedWeights([Layer("weight", module)], trained[1])
    where = module.weight.data_ptr()
    with weights.held(module, FLOAT32):
        module.weight.data.mul_(2)
    assert module.weight.data_ptr() == where


def as_it_lies(values, lying):
    """The same numbers as a slice of something wider, or with columns that lie together."""
    if lying == "transposed":
        return values.T.contiguous().T
    wider = torch.full((len(values), 3 * values.shape[1]), 7.0)
    wider[:, 2 : 2 + values.shape[1]] = values
    return wider[:, 2 : 2 + values.shape[1]]


def trained_by(fused, weight):
    """What four steps of Adam make of a weight, and where it lay before them."""
    module = nn.Linear(6, 4, bias=False)
    module.weight = nn.Parameter(weight)
    where = weight.data_ptr(), weight.stride()
    weights = TrainedWeights([Layer("weight", module)], {"weight": torch.ones(4, 6, dtype=torch.bool)})
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    with weights.held(module, FLOAT32):
        optimiser = torch.optim.Adam(weights.parameters, lr=0.1, fused=fused)
        for _ in range(4):
            optimiser.zero_grad()
            module(x).square().sum().backward()
            optimiser.step()
    assert (module.weight.data_ptr(), module.weight.stride()) == where
    return module.weight.data


@pytest.mark.parametrize("lying", ["a slice", "transposed"])
def test_a_weight_is_trained_the_same_however_it_lies(lying):
    """A fused step goes through memory as if all of it were the weight."""
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    weight = as_it_lies(values, lying)
    torch.testing.assert_close(trained_by(True, weight), trained_by(False, values.clone()))
    whole = torch.as_strided(weight, (weight.untyped_storage().nbytes() // 4,), (1,), 0)
    assert (whole == 7).sum() == (48 if lying == "a slice" else 0)


def trained_where(module, masks, keep_in):
    """Three steps down from where a module is, in files or in memory; gives what was trained, and what there was."""
    layers = [Layer("weight", module), Layer("stack[1]", module, "stack", part=1, transposed=True)]
    weights = TrainedWeights(layers, masks, keep_in)
    optimiser = torch.optim.AdamW(weights.parameters, lr=0.1, weight_decay=0.1, fused=True)
    with weights.held(module, Placement(torch.float32, keep_in=keep_in)):
        weights.remember()
        for _ in range(3):
            optimiser.zero_grad()
            for factor in (1, 2):
                (factor * module(torch.ones(5, 6) * torch.arange(1, 7))).square().sum().backward()
            if keep_in is not None:
                held = [*weights.parameters, *(one.grad for one in weights.parameters)]
                assert all(map(lies_on_disk, held))
            optimiser.step()
    return weights


def test_what_is_trained_in_files_is_taken_from_there(module, trained, tmp_path):
    """The module is as it was until then, tensor for tensor; what is taken has the bits of weights that lay in memory.

    A float32 matrix lies in columns, as one may that is mapped from a model's own file.
    """
    _, masks = trained
    module.weight.data = as_it_lies(module.weight.data, "transposed")
    other = copy.deepcopy(module)
    before = {name: value.data for name, value in module.named_parameters()}
    bits = {name: value.clone() for name, value in before.items()}
    weights = trained_where(module, masks, tmp_path)
    for name, value in module.named_parameters():
        assert value.data_ptr() == before[name].data_ptr()
        assert torch.equal(value, bits[name])
        assert value.grad is None
    weights.take([module.weight, module.bias])
    assert torch.equal(module.stack, bits["stack"])
    weights.take([module.stack])
    trained_where(other, masks, None)
    assert {name: value.dtype for name, value in module.named_parameters()} == {
        name: value.dtype for name, value in bits.items()
    }
    assert all(map(torch.equal, module.parameters(), other.parameters()))
    assert not torch.equal(module.weight, bits["weight"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_taken_of_what_ended_with_an_error(module, trained, tmp_path):
    before = [value.data.clone() for value in module.parameters()]
    weights = TrainedWeights(trained[0]._layers, trained[1], tmp_path)

    def spoil():
        with weights.held(module, Placement(torch.float32, keep_in=tmp_path)):
            module.weight.data.fill_(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    weights.take(module.parameters())
    assert all(map(torch.equal, module.parameters(), before))


def test_a_placement_puts_matrices_on_a_disk_that_it_widens_and_no_others(tmp_path):
    module = nn.Linear(4, 3).bfloat16()
    buffer, before = torch.ones(2, 2), module.weight.data
    with Placement(torch.float32, keep_in=tmp_path).held([module.weight, module.bias, buffer]):
        assert (lies_on_disk(module.weight), lies_on_disk(module.bias), lies_on_disk(buffer)) == (True, False, False)
        assert torch.equal(module.weight, before.float())
        assert module.bias.dtype == torch.float32
    assert module.weight.data_ptr() == before.data_ptr()
