"""``distill``, held against the same training written out over two whole models."""

import copy
from math import cos, pi

import pytest
import torch

from ecoflap import Anatomy, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.refining.model_view import ModelView
from ecoflap.plugins.refiners.distill import Distill, ecoflap_register_refiners

ADAPTER = LlamaAdapter()


def length_of_kept(parameter):
    """The root mean square of what is not pruned, in float64."""
    kept = (parameter != 0).sum()
    return float((parameter.detach().double().square().sum() / kept).sqrt())


def test_is_offered():
    assert ecoflap_register_refiners() == {"distill": Distill}
    assert Distill() == Distill(steps=64, batches=1, relative_rate=1e-3, learning_rate=None)
    assert Distill.scope == "model"


@pytest.mark.parametrize("rate", [{"learning_rate": 1e-3}, {"relative_rate": 3e-2}])
def test_is_the_training_written_out(pico_llama, rate):
    model = pico_llama(layers=2)
    dense_model = copy.deepcopy(model)
    batches = [
        {"input_ids": torch.arange(3, 23).reshape(2, 10) + n, "attention_mask": torch.ones(2, 10).long()}
        for n in range(3)
    ]
    anatomy = Anatomy.of(ADAPTER.towers(model), ADAPTER.layers)
    dense = Replay(model, ADAPTER, batches, anatomy=anatomy)
    masks = {}
    for index, block in enumerate(anatomy.blocks):
        dense.advance(index)
        for layer in anatomy.layers_of[block.name]:
            masks[layer.name] = layer.weight.abs() > layer.weight.abs().median()
            layer.weight.data.mul_(masks[layer.name])
    student = copy.deepcopy(model)
    layers = [layer for _, layer in anatomy.layers()]
    with ModelView(dense, layers, masks).opened() as view:
        Distill(steps=6, **rate)(view)

    named = {name: value for name, value in student.named_parameters() if name in masks}
    first = [rate.get("learning_rate") or 3e-2 * length_of_kept(parameter) for parameter in named.values()]
    groups = [{"params": [parameter]} for parameter in named.values()]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    for step in range(6):
        batch = batches[step % 2]  # the third is held out
        for group, of_first in zip(optimiser.param_groups, first, strict=True):
            group["lr"] = of_first * (1 + cos(pi * step / 6)) / 2
        optimiser.zero_grad()
        p = dense_model(**batch, use_cache=False).logits[:, :-1].detach().log_softmax(-1)
        q = student(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
        (p.exp() * (p - q)).sum(-1).mean().backward()
        for name, parameter in named.items():
            parameter.grad.mul_(masks[name])
        optimiser.step()
    found = dict(model.named_parameters())
    for name, expected in named.items():
        torch.testing.assert_close(found[name].detach(), expected.detach(), rtol=1e-3, atol=2e-5)
        assert torch.equal(found[name] != 0, masks[name])
        assert not torch.equal(found[name], dict(dense_model.named_parameters())[name] * masks[name])
