"""Models of transformers whose weights stay in files: also in one that is larger than memory and swap."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sparse import memory_and_swap, write_zeros

from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.mapped_weights import MappedWeights
from ecoflap.core.model.source import open_source

transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on"
)
pytest.importorskip("accelerate")


@pytest.fixture
def larger_than_memory(tmp_path: Path) -> Source:
    """A Llama of zeros in one file, each matrix of which is less than memory."""
    inside = 1 << 19  # as wide as a configuration may say
    width = 8 * (memory_and_swap() // (4 * 2 * inside * 8) + 1)  # a quarter of memory for each of the six matrices
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=inside, num_hidden_layers=2, num_attention_heads=2, vocab_size=16,
        dtype=torch.bfloat16,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(config).state_dict()
    stored = {name: ("BF16", tuple(one.shape)) for name, one in state.items()}
    write_zeros(tmp_path / "model" / "model.safetensors", stored)
    return open_source(str(tmp_path / "model"), tmp_path)


def test_one_file_that_is_larger_than_memory_is_mapped(larger_than_memory, tmp_path):
    mapped = MappedWeights(tmp_path / "scratch")
    model = load_transformers_model("AutoModelForCausalLM", replace(larger_than_memory, mapped=mapped), None, "cpu")
    assert {name for name, _ in model.named_parameters()} == set(mapped.places)
    assert sum(one.nbytes for one in model.parameters()) > memory_and_swap()
    assert not model.model.layers[1].mlp.up_proj.weight[-1].any()
