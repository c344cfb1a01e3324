"""The packed folder of a real, tiny transformers model."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.masks import attach
from ecoflap.core.packed import inspect_packed, load_packed
from ecoflap.core.parts import Adapter, Exporter
from ecoflap.exporters import safetensors as exporter
from ecoflap.exporters.safetensors import FILE, Safetensors


class Family(Adapter):
    """As much of an adapter as an exporter asks for."""

    processor: Any = None

    def save(self, model, folder):
        model.save_pretrained(folder)


def pruned_llama(sparsity=0.5, dtype=torch.bfloat16, tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    masks = {}
    for name, weight in model.named_parameters():
        if name.endswith("proj.weight"):
            masks[name] = torch.rand(weight.shape) >= sparsity
            weight.data *= masks[name]
    attach(model, masks)
    return model, masks


def test_it_is_an_exporter():
    assert isinstance(Safetensors(), Exporter)
    assert exporter.ecoflap_register_exporters() == {"safetensors": Safetensors}


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_that_stands_alone(tmp_path, tied):
    model, masks = pruned_llama(tied=tied)
    saved = []
    adapter = Family()
    adapter.processor = SimpleNamespace(save_pretrained=lambda folder: saved.append(folder))
    written = Safetensors()(model, adapter, tmp_path)
    assert {path.name for path in written} == {"config.json", "generation_config.json", FILE}
    assert saved == [tmp_path]
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert not model.config.architectures

    again = LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path)).to(torch.bfloat16).eval()
    again.load_state_dict(load_packed(tmp_path / FILE), strict=True)
    tokens = torch.arange(10)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    tensors = inspect_packed(tmp_path / FILE).tensors
    assert {name: tensors[name].kept for name in masks} == {name: int(mask.sum()) for name, mask in masks.items()}
    assert (tensors["lm_head.weight"].same_as is not None) == tied


def test_a_model_that_is_not_from_transformers(tmp_path):
    model = nn.Sequential(nn.Linear(20, 30))
    mask = torch.rand(30, 20) > 0.5
    model[0].weight.data *= mask
    model[0].weight.data[~mask] *= -1.0
    attach(model, {"0.weight": mask})
    assert Safetensors()(model, Family(), tmp_path) == [tmp_path / FILE]
    back = load_packed(tmp_path / FILE)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_pruned_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(EcoflapError, match="nothing in this model has been pruned"):
        Safetensors()(nn.Linear(3, 2), Family(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_moved_after_pruning_are_refused_by_name(tmp_path):
    model, masks = pruned_llama()
    name = next(iter(masks))
    with torch.no_grad():
        model.get_parameter(name).add_(1.0)
    with pytest.raises(EcoflapError, match=name):
        Safetensors()(model, Family(), tmp_path)


def test_a_file_that_reads_back_differently_is_refused(tmp_path, monkeypatch):
    model, _ = pruned_llama()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    written = exporter.save_packed
    monkeypatch.setattr(exporter, "save_packed", lambda path, _, __: written(path, state, {}))
    with pytest.raises(FormatError, match="reads back other than it was written"):
        Safetensors()(model, Family(), tmp_path)
