"""A model that brings code of its own is refused with that code's names, and with the way that runs it knowingly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from table import ROWS

from ecoflap.adapters.hubs.hugging_face import load_processor
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
