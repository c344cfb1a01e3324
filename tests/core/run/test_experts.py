"""Mixtures of experts from a folder to exports: exact, resumed to the bit, and saved under the names on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import ecoflap
from ecoflap.core.contracts.events import LayerPruned
from ecoflap.core.model.parameter_masks import ParameterMasks
from ecoflap.core.record.report import read_report

pytest.importorskip("transformers", minversion="5.0", reason="experts are packed from transformers 5 on")

ALIKE = ("deepseek_v3", "qwen3_moe", "llama4_text")
KINDS = ["mixtral", "gpt_oss", *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)]


@pytest.fixture(params=KINDS, scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, and the run of a recipe, ``whole``."""
    from pico_causal import FAMILIES
    from pico_words import tokenizer

    place = tmp_path_factory.mktemp(request.param)
    model: Any = FAMILIES[request.param].build()
    model.save_pretrained(place / "dense")
    tokenizer().save_pretrained(place / "dense")
    lines = (" ".join(f"w{(7 * line + word) % 40}" for word in range(30)) for line in range(20))
    (place / "text.txt").write_text("\n".join(lines))
    ecoflap.run(recipe_in(place), folder=place / "whole")
    return place


def recipe_in(place: Path) -> dict[str, Any]:
    text = {"use": "text", "path": str(place / "text.txt"), "samples": 4, "sequence_length": 16}
    return {
        "version": 1, "model": {"source": str(place / "dense"), "dtype": "float32"}, "calibration": text,
        "sparsity": 0.5, "score": {"use": "zeroth_order", "samples": 2}, "allocate": "ecoflap", "prune": "sparsegpt",
        "export": ["safetensors", "hugging_face"],
    }  # fmt: skip


def names_in(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sorted(file.keys())


def test_a_run_is_exact_resumed_to_the_bit_and_keeps_the_names_on_disk(place, lasting, heard_by, tmp_path):
    recipe, whole = recipe_in(place), place / "whole"

    def stop(event: Any) -> None:
        if isinstance(event, LayerPruned) and event.name.endswith("layers.1.self_attn.o_proj.weight"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, folder=tmp_path / "cut", registry=heard_by(stop))
    assert [path.name for path in (tmp_path / "cut" / "blocks").iterdir()] == ["000.safetensors"]
    ecoflap.run(recipe, folder=tmp_path / "cut")
    assert lasting(tmp_path / "cut") == lasting(whole)

    report = read_report(whole / "report.json")
    assert report.kept == report.prunable // 2
    for folder in (whole / "model", whole / "exports" / "hugging_face"):
        assert names_in(folder) == names_in(place / "dense")


def test_what_is_exported_reads_back_with_its_masks(place):
    from transformers import AutoModelForCausalLM

    whole = place / "whole"
    packed = whole / "exports" / "safetensors"
    model, masks = ecoflap.load_model(packed), ecoflap.load_masks(packed)
    again, of_run = AutoModelForCausalLM.from_pretrained(whole / "model"), ecoflap.load_masks(whole)
    experts = [name for name in of_run if name.endswith("]")]
    assert experts
    state = model.state_dict()
    for name, mask in ParameterMasks(model, of_run).items():
        assert torch.equal(mask, masks[name]), name
        assert not bool(state[name][~mask].any()), name
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
