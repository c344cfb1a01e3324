"""A checkpoint is held to its configuration: what is missing, has no place, or is no real number is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico_t5
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecoflap.adapters.hubs.checked_weights import refuse_quantised
from ecoflap.adapters.hubs.hugging_face import load_transformers_model
from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import open_source

QUERY = "model.layers.0.self_attn.q_proj.weight"
Weights = dict[str, Tensor]


@pytest.fixture
def changed(tmp_path: Path, pico_llama: Callable[..., Any]) -> Callable[..., Source]:
    """A saved model of two blocks after a change of its weights or its configuration."""

    def change(weights: Callable[[Weights], object] = lambda state: None, **config: Any) -> Source:
        pico_llama(layers=2).save_pretrained(tmp_path / "model")
        file, about = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "config.json"
        state = load_file(file)
        weights(state)
        save_file(state, file, metadata={"format": "pt"})
        about.write_text(json.dumps({**json.loads(about.read_text()), **config}))
        return open_source(str(tmp_path / "model"), Path())

    return change


def read(source: Source, kind: str = "AutoModelForCausalLM", device: str = "cpu") -> Any:
    return load_transformers_model(kind, source, None, device)


def as_integers(state: Weights, name: str = QUERY) -> None:
    state[name] = (state[name] * 100).to(torch.int8)


def test_blocks_beyond_those_of_the_configuration(changed: Callable[..., Source]):
    with pytest.raises(ModelError) as error:
        read(changed(num_hidden_layers=1))
    (problem,) = error.value.problems
    assert "holds 9 weights that its config.json does not know, and that would be left out" in problem
    assert "model.layers.1.input_layernorm.weight" in problem
    assert "and 5 more. The configuration is of another model" in problem


def test_a_bias_that_the_configuration_denies(changed: Callable[..., Source]):
    bias = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ModelError, match=rf"holds 1 weights .* left out: {bias}\. .* that there are biases"):
        read(changed(lambda state: state.update({bias: torch.ones(32)})))


def test_all_that_is_wrong_is_said_at_once(changed: Callable[..., Source]):
    def spoil(state: Weights) -> None:
        del state["model.layers.1.mlp.up_proj.weight"]
        state["model.layers.1.mlp.gate_proj.weight"] = torch.ones(4, 32)
        state["model.adapter.weight"] = torch.ones(2, 2)

    with pytest.raises(ModelError) as error:
        read(changed(spoil))
    lacks, shapes, unknown = error.value.problems
    assert lacks.endswith("lacks 1 of the model's weights: model.layers.1.mlp.up_proj.weight.")
    assert "of other shapes than its config.json says: model.layers.1.mlp.gate_proj.weight" in shapes
    assert "model.adapter.weight" in unknown


def test_integers_without_scales(changed: Callable[..., Source]):
    """transformers would read 72 for 0.72."""
    with pytest.raises(ModelError, match=rf"holds integers in 1 weights.*no quantization_config.*{QUERY} \(int8\)"):
        read(changed(as_integers))


def test_scales_that_nothing_reads(changed: Callable[..., Source]):
    def quantise(state: Weights) -> None:
        state[f"{QUERY}_scale"] = torch.ones(32)
        state[QUERY] = state[QUERY].to(torch.float8_e4m3fn)

    with pytest.raises(ModelError, match=rf"does not know, and that would be left out: {QUERY}_scale"):
        read(changed(quantise))


def test_what_transformers_leaves_out_on_purpose(changed: Callable[..., Source], tmp_path: Path):
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    read(changed(lambda state: state.update(frequencies)))
    pico_t5.build().save_pretrained(tmp_path / "t5")
    file = tmp_path / "t5" / "model.safetensors"
    bias = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 2)}
    save_file({**load_file(file), **bias}, file, metadata={"format": "pt"})
    read(open_source(str(tmp_path / "t5"), Path()), "AutoModelForSeq2SeqLM")


def test_a_tied_head_may_be_stored_and_may_not(pico_llama: Callable[..., Any], tmp_path: Path):
    pico_llama(layers=1, tied=True).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    assert "lm_head.weight" not in state
    read(open_source(str(tmp_path), Path()))
    head = {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    save_file({**state, **head}, file, metadata={"format": "pt"})
    read(open_source(str(tmp_path), Path()))


def test_heads_of_the_same_configuration_are_known(tmp_path: Path):
    """BERT's own checkpoints hold its pooler and the head that tells whether one sentence follows another."""
    from transformers import BertConfig, BertForPreTraining

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForPreTraining(BertConfig(vocab_size=20, **shape)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    source = open_source(str(tmp_path), Path())
    assert read(source, "AutoModelForMaskedLM").config.model_type == "bert"
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "bert.tower.weight": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"left out: bert\.tower\.weight\."):
        read(open_source(str(tmp_path), Path()), "AutoModelForMaskedLM")


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"is quantised \(gptq\).*Name the model that it was made from, or de-qua",
        ),
        ({"quant_method": "mxfp4"}, r"is quantised \(mxfp4\).*Mxfp4Config\(dequantize=True\), then save_pretrained"),
        ({"bits": 8}, r"is quantised \(a method that it does not name\)"),
    ],
)
def test_a_quantised_checkpoint(written: dict[str, Any], said: str, device: str, changed: Callable[..., Source]):
    with pytest.raises(ModelError, match=said):
        read(changed(quantization_config=written), device=device)


def test_experts_of_a_quantised_checkpoint_are_named(changed: Callable[..., Source]):
    experts = "model.layers.0.mlp.experts.gate_up_proj_blocks"

    def quantise(state: Weights) -> None:
        as_integers(state)
        state[experts] = torch.ones(2, 4, 4, dtype=torch.uint8)

    with pytest.raises(ModelError, match=rf"\(mxfp4\): {experts}, {QUERY} are integers, and what is pruned"):
        read(changed(quantise, quantization_config={"quant_method": "mxfp4"}))


def test_a_part_of_a_model_may_be_quantised():
    config = {"model_type": "llava", "text_config": {"quantization_config": {"quant_method": "awq"}}}
    with pytest.raises(ModelError, match=r"org/name is quantised \(awq\)"):
        refuse_quantised(Source("org/name", config=config))
    refuse_quantised(Source("org/name", config={"model_type": "llava", "quantization_config": None}))
