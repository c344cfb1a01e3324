"""Greedy tokens of a compiled model against those it says uncompiled, and what is refused."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.core.errors import ModelError

transformers = pytest.importorskip("transformers", minversion="5.24", reason="the first to keep max_cache_len")


SAYS = """
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ecoflap

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64, "eos_token_id": None}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
for layer in model.model.layers.modules():
    if isinstance(layer, torch.nn.Linear):
        layer.weight.data[:, ::2] = 0
ecoflap.pack_model(model)


def said(prompt, tokens):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()


graphs = []


def nothing(graph, inputs):
    graphs.append(graph)
    return graph.forward


asked = [([3, 5, 8], 6), ([9, 4, 7, 11, 2], 9), ([13], 12)]
plain = [said(*one) for one in asked]
ecoflap.compile_generation(model, length=32)
if sys.argv[1] == "nothing":
    model.generation_config.compile_config.backend = nothing
assert [said(*one) for one in asked] == plain
called = [node.target for graph in graphs for node in graph.graph.nodes]
print(called.count(torch.ops.ecoflap.packed_linear))
"""


without_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")


@pytest.mark.parametrize("backend", ["nothing", pytest.param("inductor", marks=[pytest.mark.slow, without_compiler])])
def test_tokens_are_those_of_the_model_as_it_was_and_one_code_serves_all_lengths(backend):
    """Apart from these tests, whose checks of types torch cannot compile."""
    compiler = {} if backend == "inductor" else {"CXX": sys.executable}
    command = [sys.executable, "-c", SAYS, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **compiler})
    assert done.returncode == 0, done.stderr
    # The step that says one token, once: two blocks of seven products.
    assert int(done.stdout) == (14 if backend == "nothing" else 0)


@pytest.fixture
def packed(pico_llama):
    model = pico_llama().eval()
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data[:, ::2] = 0
    ecoflap.pack_model(model)
    return model


def test_what_is_saved_says_nothing_of_it(packed, tmp_path, monkeypatch):
    plain = said(packed)
    monkeypatch.setenv("CXX", sys.executable)  # nothing is compiled here
    ecoflap.compile_generation(packed)
    packed.save_pretrained(tmp_path / "saved")
    again = type(packed).from_pretrained(tmp_path / "saved")
    assert again.generation_config.compile_config is None
    assert said(again) == plain


def said(model: nn.Module) -> list[int]:
    ids = torch.tensor([[3, 5, 8]])
    said: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[
        0
    ].tolist()
    return said


class Silent(nn.Module):
    """A model that says nothing."""


def test_what_cannot_be_compiled_is_refused(packed, monkeypatch):
    with pytest.raises(ModelError, match="length is 0; it counts positions"):
        ecoflap.compile_generation(packed, length=0)
    with pytest.raises(ModelError, match="Silent says no texts by transformers' generate"):
        ecoflap.compile_generation(Silent())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match=r"torch compiles by no-such-compiler, and there is none: install it, or name"):
        ecoflap.compile_generation(packed)
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(packed.config, "is_encoder_decoder", True)
    with pytest.raises(ModelError, match="LlamaForCausalLM reads by an encoder, and what it has read has another len"):
        ecoflap.compile_generation(packed)
    monkeypatch.delattr(packed.generation_config, "max_cache_len")
    monkeypatch.setattr(packed.config, "is_encoder_decoder", False)
    with pytest.raises(ModelError, match="this transformers compiles one length at a time: pip install -U"):
        ecoflap.compile_generation(packed)
    monkeypatch.setattr(type(packed), "_can_compile_fullgraph", False)
    with pytest.raises(ModelError, match="transformers compiles no LlamaForCausalLM: its class does not say"):
        ecoflap.compile_generation(packed)
    assert packed.generation_config.cache_implementation is None
