"""The family's own checkpoint."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ecoflap.core.parts import Adapter, Exporter
from ecoflap.exporters.hugging_face import HuggingFace, ecoflap_register_exporters


class Family(Adapter):
    processor: Any = None

    def save(self, model, folder):
        model.save_pretrained(folder)


def test_it_is_an_exporter():
    assert isinstance(HuggingFace(), Exporter)
    assert ecoflap_register_exporters() == {"hugging_face": HuggingFace}


def test_the_family_loads_its_zeros(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[weight.data < 0] = 0
    written = HuggingFace()(model, Family(), tmp_path)
    assert {path.name for path in written} == {"config.json", "generation_config.json", "model.safetensors"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
