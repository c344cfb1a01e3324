"""A model that brings code of its own is refused with that code's names, and with the way that runs it knowingly."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from table import ROWS

import ecoflap
from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.errors import ModelError
from ecoflap.core.model.own_code import not_run, own_code
from ecoflap.core.model.source import open_source
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import load_registry

AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    "AutoTokenizer": ["someone/words--tokenization_own.OwnTokenizer", None],
}


def test_files_are_named_with_their_classes():
    assert own_code({"auto_map": AUTO_MAP}) == [
        "configuration_own.py (OwnConfig)",
        "modeling_own.py (OwnModel, OwnForCausalLM)",
        "someone/words--tokenization_own.py (OwnTokenizer)",
    ]
    assert own_code({"model_type": "llama"}) == own_code({"auto_map": None}) == []
    assert not_run({}) == ""


def test_a_model_that_only_its_own_code_builds(tmp_path: Path):
    (tmp_path / "modeling_own.py").write_text("raise RuntimeError('run')")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": AUTO_MAP}))
    source = open_source(str(tmp_path), Path())
    with pytest.raises(ModelError) as error:
        adapter_for(source, load_registry())
    assert "no adapter claims a model of type 'own'" in str(error.value)
    assert "not run here: configuration_own.py (OwnConfig), modeling_own.py (OwnModel, OwnFor" in str(error.value)
    assert "with trust_remote_code=True, and give it to ecoflap.run(recipe, model=…" in str(error.value)


@pytest.mark.skipif("llama" not in ROWS, reason="so old a transformers refuses any model with an auto_map itself")
@pytest.mark.parametrize("name", ["causal_lm", "llama"])
def test_an_adapter_that_is_named_for_such_a_model(tmp_path: Path, name: str):
    config = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": AUTO_MAP}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as error:
        inspection(str(tmp_path), name, load_registry())
    said = error.value.problems[0]
    assert f"transformers {transformers.__version__} knows no model of type 'own'. The model brings code of" in said
    assert len(said) < 1000, "transformers would name each of its hundreds of types"


OWN_CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
"""
OWN_MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that its user has had transformers build by code of its own, from a folder with such code."""
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder, sizes = tmp_path / "own", {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    folder.mkdir()
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config = {"model_type": "own", "auto_map": auto_map, **sizes, "num_hidden_layers": 2, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(OWN_CONFIG)
    (folder / "modeling_own.py").write_text(OWN_MODEL)

    def build() -> Any:
        own = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        return AutoModelForCausalLM.from_config(own, trust_remote_code=True).eval()

    return build


@pytest.mark.skipif("llama" not in ROWS, reason="so old a transformers refuses any model with an auto_map itself")
def test_one_that_its_user_trusts_is_pruned_and_its_weights_come_back(own_model: Callable[..., Any], tmp_path: Path):
    model, exports = own_model(), tmp_path / "run" / "exports"
    recipe = {"version": 1, "model": "own", "sparsity": 0.5, "allocate": "uniform", "prune": "magnitude"}
    done = ecoflap.run({**recipe, "export": ["safetensors", "hugging_face"]}, model=model, folder=tmp_path / "run")
    (note,) = done.report.warnings
    assert "no model was made of them: this folder cannot be loaded: The model brings code of its own" in note
    assert "partial" not in note
    with pytest.raises(ModelError) as error:
        ecoflap.load_model(exports / "safetensors")
    assert "not run here: configuration_own.py (OwnConfig), modeling_own.py (OwnForCausalLM)." in str(error.value)
    assert f"then model.load_state_dict(ecoflap.load_packed('{exports / 'safetensors'}')), and" in str(error.value)
    again = own_model()
    assert not torch.equal(again.lm_head.weight, model.lm_head.weight)
    again.load_state_dict(ecoflap.load_packed(exports / "safetensors"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_tokenizer_that_only_its_own_code_builds(tmp_path: Path, pico_llama: Callable[..., Any]):
    pico_llama(layers=1).save_pretrained(tmp_path)
    written = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": AUTO_MAP["AutoTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    with pytest.raises(ModelError) as error:
        load_processor("AutoTokenizer", open_source(str(tmp_path), Path()))
    assert "cannot be read: It brings code of its own, which is not run here: someone/words--token" in str(error.value)


@pytest.mark.skipif("llama" not in ROWS, reason="so old a transformers refuses any model with an auto_map itself")
def test_code_beside_a_model_that_transformers_knows_is_left_alone(tmp_path: Path, pico_llama: Callable[..., Any]):
    """Many checkpoints still name the code that they needed before transformers had their family."""
    pico_llama(layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    source = open_source(str(tmp_path), Path())
    adapter = adapter_for(source, load_registry())
    assert type(adapter.load(source, None, "cpu")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"attn_implementation": "someone/attention"}, "attn_implementation"),
        ({"text_config": {"_attn_implementation": "someone/attention@v1:f"}}, r"text_config\._attn_implementation"),
        ({"attn_implementation": {"vision_config": "someone/attention"}}, r"attn_implementation\.vision_config"),
        ({"experts_implementation": "someone/experts"}, "experts_implementation"),
    ],
)
def test_kernels_of_the_hub_are_code_too(config: dict[str, Any], key: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    with pytest.raises(ModelError, match=rf"config\.json: {key} names code of the hub, someone/.*, which is not run"):
        open_source(str(tmp_path), Path())


def test_ways_of_transformers_itself_are_none(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"attn_implementation": "sdpa", "_name_or_path": "a/b"}))
    assert open_source(str(tmp_path), Path()).config["attn_implementation"] == "sdpa"
