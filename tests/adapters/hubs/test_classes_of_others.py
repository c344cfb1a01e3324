"""A class that transformers gives to another type of model, whose checkpoints have names of their own."""

from pathlib import Path

import pytest
import torch
from pico_words import BEGIN, END, PAD, VOCABULARY, tokenizer
from safetensors import safe_open
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.core.errors import ModelError
from ecoflap.core.model.source import open_source

SETTINGS = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64, "pad_token_id": PAD,
    "bos_token_id": BEGIN, "eos_token_id": END, "tie_word_embeddings": False,
}  # fmt: skip
OTHERS = pytest.mark.skipif(is_before("5"), reason="this transformers gives no class to another type")


def saved(kind: str, folder: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SETTINGS))
    model.save_pretrained(folder)  # type: ignore[attr-defined, operator]
    tokenizer().save_pretrained(folder)
    return model


@OTHERS
@pytest.mark.parametrize("kind", ["internlm3", "exaone"])
def test_it_is_pruned_and_its_library_reads_it_again(kind: str, tmp_path: Path):
    """EXAONE's weights have other names in files than LLaMA's class has."""
    from transformers import AutoModelForCausalLM

    dense = saved(kind, tmp_path / "dense").state_dict()
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{number % 40}" for number in range(400)))
    recipe = {
        "version": 1, "seed": 0, "model": str(tmp_path / "dense"), "sparsity": 0.5, "prune": "wanda", "export": None,
        "calibration": {"use": "text", "path": str(text), "samples": 2, "sequence_length": 12}, "evaluate": None,
        "score": None, "allocate": "uniform",
    }  # fmt: skip
    done = ecoflap.run(recipe, folder=tmp_path / "run")
    again = AutoModelForCausalLM.from_pretrained(done.folder / "model").state_dict()
    assert again.keys() == dense.keys()
    for name, weight in again.items():
        kept = weight != 0
        assert torch.equal(weight[kept], dense[name][kept])
    assert not again["model.layers.1.mlp.up_proj.weight"].all()
    stored = [folder / "model.safetensors" for folder in (tmp_path / "dense", done.folder / "model")]
    with safe_open(stored[0], "pt") as before, safe_open(stored[1], "pt") as after:
        assert set(after.keys()) == set(before.keys())


def test_a_class_of_another_kind_is_refused_as_before(tmp_path: Path, pico_llama_folder: Path):
    source = open_source(str(pico_llama_folder), tmp_path)
    with pytest.raises(ModelError, match=r"no T5ForConditionalGeneration can be made of a model of type 'llama'"):
        load_transformers_model("T5ForConditionalGeneration", source, None, "meta")
