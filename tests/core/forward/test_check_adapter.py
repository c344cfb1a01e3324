"""An adapter that says something wrong is told what."""

import pytest
import torch

import ecoflap
from ecoflap import EcoflapError, Sample
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.model.anatomy import Layer

SAMPLES = [Sample(tokens=torch.arange(3, 3 + length)) for length in (12, 7, 9)]


def test_a_right_one_gives_its_anatomy(pico_llama):
    anatomy = ecoflap.check_adapter(LlamaAdapter(), pico_llama(), SAMPLES)
    assert [tower.name for tower in anatomy.towers] == ["language", "lm_head"]


class Short(LlamaAdapter):
    def layers(self, block):
        return list(super().layers(block))[:-1] if block.tower == "language" else super().layers(block)


class Everything(LlamaAdapter):
    def tokens(self, model, batch, tower, call=0):
        return torch.ones_like(batch["attention_mask"]).to(torch.int8)


class Stray(LlamaAdapter):
    def layers(self, block):
        if block.name == "model.layers.0":
            block.module.stray = torch.nn.Linear(4, 4)
            return [*super().layers(block), Layer("model.layers.0.stray.weight", block.module.stray)]
        return super().layers(block)


class Detached(LlamaAdapter):
    def loss(self, model, batch):
        first = model.model.layers[0].mlp.up_proj.weight
        held, first.data = first.data, first.data
        with torch.no_grad():
            value = super().loss(model, batch)
        first.data = held
        return value + 0 * model.lm_head.weight.sum() if torch.is_grad_enabled() else value


class Drifting(LlamaAdapter):
    calls = 0

    def loss(self, model, batch):
        self.calls += 1
        return super().loss(model, batch) + self.calls


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (Short, "model.layers.0.mlp.down_proj.weight is a matrix that layers() does not list"),
        (Everything, "model.layers.1.mlp.up_proj.weight: its inputs are others in a padded batch than alone"),
        (Stray, "model.layers.0 ran without these matrices being used through torch.nn.functional.linear"),
        (Detached, "model.layers.0.mlp.up_proj.weight: the loss does not depend on it"),
        (Drifting, "the loss from model.layers.1 on is"),
    ],
)
def test_a_wrong_one_is_told_what(adapter, told, pico_llama):
    with pytest.raises(EcoflapError) as caught:
        ecoflap.check_adapter(adapter(), pico_llama(), SAMPLES)
    assert told in str(caught.value)
