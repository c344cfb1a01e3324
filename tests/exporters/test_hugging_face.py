"""The family's own checkpoint: its library loads it, zeros and all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import bits, half_pruned, outputs
from table import ROWS
from torch import nn

from ecoflap.adapters.hubs import hugging_face as transformers_files
from ecoflap.core.contracts.protocols import Exporter
from ecoflap.core.contracts.records import Meanwhile, ViewSize
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.core.model.anatomy import Layer
from ecoflap.exporters.hugging_face import HuggingFace, ecoflap_register_exporters
from ecoflap.exporters.shared.loading_code import library_of
from ecoflap.exporters.shared.model_card import CARD

ANY = "llama" if "llama" in ROWS else next(iter(ROWS))
LIBRARIES = {"pico_open_clip": "open_clip", "pico_timm": "timm"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dense").mkdir()
    return tmp_path / "dense"


def test_it_is_an_exporter():
    assert isinstance(HuggingFace(), Exporter)
    assert ecoflap_register_exporters() == {"hugging_face": HuggingFace}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_family_loads_its_zeros(name: str, folder: Path):
    pruned = half_pruned(name)
    model, adapter = pruned.model, pruned.adapter
    given = adapter.processor
    told = HuggingFace()(pruned, folder)
    again = ROWS[name].reload(folder)
    assert bits(again) == bits(model)
    for ours, theirs in zip(outputs(name, model, adapter), outputs(name, again, adapter), strict=True):
        assert torch.equal(ours, theirs)
    assert adapter.processor is given
    assert set(told.files) == {path for path in folder.rglob("*") if path.is_file()}
    (check,) = told.checks
    assert (folder / check.file).is_file()
    assert check.difference == 0
    if ROWS[name].is_whole_on_disk:
        assert (check.runtime, told.notes) == (library_of(model), ())
        assert check.runtime in ("transformers", "open_clip", "timm")
    else:
        assert check.runtime == "torch"
        assert "no model was made of them" in told.notes[0]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_it_tells_of_itself(name: str, folder: Path):
    pruned = half_pruned(name)
    told = HuggingFace()(pruned, folder)
    state = pruned.model.state_dict()
    assert [tensor.name for tensor in told.tensors] == list(pruned.masks)
    for tensor in told.tensors:
        weight = state[tensor.name]
        assert (tensor.form, tensor.shape) == ("dense", tuple(weight.shape))
        assert (tensor.nonzeros, tensor.dense_bytes) == (int(weight.count_nonzero()), weight.nbytes)
        assert tensor.stored_bytes == tensor.dense_bytes
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth")]
    assert told.dense_bytes == sum(path.stat().st_size for path in weights)


def test_a_model_without_masks_has_nothing_to_tell_of_them(folder: Path):
    told = HuggingFace()(replace(half_pruned(ANY), masks={}), folder)
    assert told.tensors == ()
    assert "not noted" in (folder / CARD).read_text()


@pytest.mark.parametrize("name", [name for name in ROWS if name in ("llama", "llama-tied", "t5", "clip", "blip2_t5")])
def test_transformers_has_shards(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transformers_files, "SHARD_SIZE", "40KB")
    pruned = half_pruned(name)
    told = HuggingFace()(pruned, folder)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(shards) > 1
    assert set(index["weight_map"].values()) == set(shards)
    assert bits(ROWS[name].reload(folder)) == bits(pruned.model)
    assert told.checks[0].difference == 0


def test_it_says_nothing_of_sparsity_to_loaders(folder: Path):
    """A ``sparsity_config`` makes some versions of transformers draw the weights at random."""
    for name in sorted(ROWS):
        HuggingFace()(half_pruned(name), folder)
        for file in folder.glob("*.json"):
            assert not {"quantization_config", "sparsity_config", "compression_config"} & keys(
                json.loads(file.read_text())
            )
        for file in folder.iterdir():
            file.unlink()


def keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{} cannot be loaded: odd", "this folder cannot be loaded: odd"),
        ("no model in {}: expected a config.json", "no model in this folder: expected a config.json"),
        ("{}/config.json: it is of another model", "config.json: it is of another model"),
        ("odd", "odd"),
    ],
)
def test_why_it_is_not_loaded_is_noted_without_the_folders_name(said, told, folder, monkeypatch):
    """It lies elsewhere once it is whole."""
    pruned = half_pruned(ANY)

    def load(self, source, dtype, device):
        raise ModelError(said.format(source.path))

    monkeypatch.setattr(type(pruned.adapter), "load", load)
    found = HuggingFace()(pruned, folder)
    assert found.notes == (f"its files were compared, and no model was made of them: {told}",)
    assert found.checks[0].runtime == "torch"


def test_a_checkpoint_that_reads_back_differently_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pruned = half_pruned(ANY)
    save = type(pruned.adapter).save

    def shifted(self, model, folder):
        weight = next(p for p in model.parameters() if p.ndim > 1)
        weight.data += 1
        save(self, model, folder)
        weight.data -= 1

    monkeypatch.setattr(type(pruned.adapter), "save", shifted)
    with pytest.raises(FormatError, match="reads back other than it was written"):
        HuggingFace()(pruned, folder)


def test_what_reading_it_back_takes_is_predicted():
    """The model once more; of one that stays in files what its library makes of several weights."""
    held = ViewSize(4 * 10**9, 3 * 10**9, 15 * 10**8, 10**8, 2, offloaded=False)
    assert HuggingFace().meanwhile(held) == Meanwhile(8 * 10**9)
    assert HuggingFace().meanwhile(replace(held, offloaded=True)) == Meanwhile(0)
    experts = nn.Module()
    experts.register_parameter("down_proj", nn.Parameter(torch.zeros(4, 8, 6)))
    parts = tuple(Layer(f"experts.down_proj[{number}]", experts, "down_proj", part=number) for number in range(4))
    alone = replace(held, layers=(Layer("head.weight", nn.Linear(6, 8)),))
    assert HuggingFace().meanwhile(replace(alone, offloaded=True)) == Meanwhile(0)
    with_experts = replace(alone, offloaded=True, layers=alone.layers + parts)
    assert HuggingFace().meanwhile(with_experts) == Meanwhile(2 * 192, 2 * 192)
