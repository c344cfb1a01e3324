"""Which modules of a block are its sub-blocks, and what is seen of them, on blocks made for it."""

import pytest
import torch
from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.refining.subblocks import by_batch, outputs_inside, subblocks_of


class Listed(nn.Module):
    """Its parts are in a list, as T5's, the second of them called twice and its output written into."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layer = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)])

    def forward(self, hidden):
        hidden = self.layer[0](self.norm(hidden))
        for _ in range(2):
            hidden = self.layer[1](hidden)
            hidden.mul_(2)
        return (hidden,)


class Fused(Listed):
    """A layer is its own parameter."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.ones(4, 4))


def layers_of(module):
    return [
        Layer(f"block.{name}", module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
        for name, parameter in module.named_parameters()
        if parameter.dim() == 2
    ]


def found(module, layers=None):
    block = Block("block", module, "tower")
    return subblocks_of(block, layers_of(module) if layers is None else layers)


def test_lists_are_opened_and_what_has_a_forward_is_not():
    module = Listed()
    one, other = found(module)
    assert (one.block.name, one.block.module) == ("block.layer.0", module.layer[0])
    assert (other.block.name, other.block.tower) == ("block.layer.1", "tower")
    assert [[layer.name for layer in each.layers] for each in (one, other)] == [
        ["block.layer.0.0.weight"], ["block.layer.1.weight"]
    ]  # fmt: skip


def test_they_come_in_the_order_their_layers_run():
    module = Listed()
    assert [each.block.name for each in found(module, layers_of(module)[::-1])] == ["block.layer.1", "block.layer.0"]


def test_only_what_holds_a_layer_that_is_asked_for_counts():
    module = Listed()
    assert found(module, layers_of(module)[:1]) == ()


@pytest.mark.parametrize("module", [Fused(), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)])
def test_there_are_none_where_a_layer_is_in_none_or_all_are_in_one(module):
    assert found(module) == ()


def test_what_they_return_is_kept_call_by_call_before_it_is_written_into():
    module, inputs = Listed(), torch.randn(3, 4)
    with outputs_inside(Block("block", module, "tower"), found(module), torch.clone) as seen:
        for _ in range(2):
            module(inputs)
    first = module.layer[0](module.norm(inputs))
    second = module.layer[1](first)
    third = module.layer[1](2 * second)
    assert [{name: len(hidden) for name, hidden in call.items()} for call in seen] == [
        {"block.layer.0": 1, "block.layer.1": 2}
    ] * 2
    for call in seen:
        for kept, expected in zip(call["block.layer.1"], (second, third), strict=True):
            torch.testing.assert_close(kept, expected)
    assert not module.layer[0]._forward_hooks
    assert not module._forward_pre_hooks


def test_calls_of_one_batch_are_joined():
    a, b, c = (torch.full((1,), float(number)) for number in range(3))
    assert by_batch([{"x": [a]}, {"x": [b], "y": [c]}, {}, {"x": [c]}], 2) == [{"x": [a, b], "y": [c]}, {"x": [c]}]
    assert by_batch([], 1) == []


def test_one_that_returns_no_tensor_is_named():
    class Silent(nn.Linear):
        def forward(self, hidden):
            return None

    module = nn.Sequential(nn.Linear(4, 4), Silent(4, 4))
    one = found(module)
    with (
        outputs_inside(Block("block", module, "tower"), one, torch.clone),
        pytest.raises(ModelError, match=r"^block\.1: it returned no tensor"),
    ):
        module(torch.ones(1, 4))
