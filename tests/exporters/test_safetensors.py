"""The packed folder: what is in it, for every family."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import bits, half_pruned, planned
from safetensors import safe_open
from safetensors.torch import load_file
from table import ROWS
from torch import nn

import ecoflap
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Exporter, PrunedModel
from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.packed.read_packed import inspect_packed, load_packed
from ecoflap.exporters import safetensors as exporter
from ecoflap.exporters.safetensors import FILE, Safetensors
from ecoflap.exporters.shared.model_card import CARD

ANY = "llama" if "llama" in ROWS else next(iter(ROWS))


class Family(Adapter):
    """As much of an adapter as an exporter asks for."""

    processor: Any = None

    def towers(self, model):
        return []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


def test_it_is_an_exporter():
    assert isinstance(Safetensors(), Exporter)
    assert exporter.ecoflap_register_exporters() == {"safetensors": Safetensors}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(ROWS))
def test_beside_the_weights_is_what_the_family_saves(
    name: str, dtype: torch.dtype | None, folder: Path, tmp_path: Path
):
    """Byte by byte the files that the adapter's own ``save`` writes, but for the weights."""
    reread = tmp_path / "reread" if dtype is not None and ROWS[name].is_whole_on_disk else None
    pruned = half_pruned(name, reread, dtype)
    pruned.adapter.save(pruned.model, tmp_path / "dense")
    Safetensors()(pruned, folder)

    def beside(place: Path) -> dict[str, bytes]:
        weights = (".safetensors", ".pth", ".bin")
        return {file.name: file.read_bytes() for file in place.iterdir() if file.suffix not in weights}

    written = beside(folder)
    assert written.pop(CARD)
    assert written == beside(tmp_path / "dense")


def test_the_card_calls_it_smaller_where_it_is(folder: Path, tmp_path: Path):
    """In float32 a bit for each weight is 3 % of it, so that of one zero in sixty-four nothing is packed."""
    pruned = half_pruned(ANY)
    written = Safetensors()(pruned, folder)
    assert written.dense_bytes is not None
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < written.dense_bytes
    assert "**It is smaller, and not faster.**" in (folder / CARD).read_text()
    few = {name: torch.ones_like(mask) for name, mask in pruned.masks.items()}
    dense = ROWS[ANY].build()
    with torch.no_grad():
        for name, mask in few.items():
            mask.view(-1)[::64] = False
            dense.get_parameter(name).mul_(mask)
    (tmp_path / "few").mkdir()
    written = Safetensors()(replace(pruned, model=dense, masks=few), tmp_path / "few")
    assert {tensor.form for tensor in written.tensors} == {"dense"}
    card = (tmp_path / "few" / CARD).read_text()
    assert "**It is neither smaller nor faster than the dense model.** So little of it is pruned" in card


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_it_tells_of_itself(name: str, folder: Path):
    pruned = half_pruned(name)
    model = pruned.model
    told = Safetensors()(pruned, folder)
    assert set(told.files) == {path for path in folder.rglob("*") if path.is_file()}
    state, size = model.state_dict(), (folder / FILE).stat().st_size
    first = {tensor.data_ptr(): layer for layer, tensor in reversed(state.items())}
    masks = {first[state[layer].data_ptr()]: mask for layer, mask in pruned.masks.items()}
    assert {tensor.name for tensor in told.tensors} == set(masks)
    for tensor in told.tensors:
        weight = state[tensor.name]
        kept = int(masks[tensor.name].sum())
        packed = kept * weight.itemsize + (weight.numel() + 7) // 8
        assert tensor.form == ("bitmask" if packed < weight.nbytes else "dense")
        assert tensor.shape == tuple(weight.shape)
        assert (tensor.nonzeros, tensor.dense_bytes) == (int(weight.count_nonzero()), weight.nbytes)
        assert tensor.stored_bytes == min(packed, weight.nbytes)
    saved = sum(tensor.dense_bytes - tensor.stored_bytes for tensor in told.tensors)
    assert told.dense_bytes == size + saved
    (check,) = told.checks
    assert (check.file, check.runtime, check.difference) == (FILE, "safetensors", 0.0)


def test_a_weight_takes_what_it_should(folder: Path):
    """(1-s) + 1/32 of 32 bits, (1-s) + 1/16 of 16 bits: to the bit."""
    for dtype, share in ((torch.float32, 0.5 + 1 / 32), (torch.bfloat16, 0.5 + 1 / 16), (torch.float16, 0.5 + 1 / 16)):
        model = nn.Sequential(nn.Linear(64, 128, bias=False)).to(dtype)
        mask = torch.arange(64 * 128).reshape(128, 64) % 2 == 0
        model[0].weight.data *= mask
        told = Safetensors()(PrunedModel(model, Family(), {"0.weight": mask}), folder)
        assert told.tensors[0].stored_bytes == share * told.tensors[0].dense_bytes
        assert (folder / FILE).stat().st_size < share * 64 * 128 * dtype.itemsize + 1500


def test_shards_with_an_index(folder: Path):
    pruned = half_pruned(ANY)
    model = pruned.model
    told = Safetensors(shard_bytes=20_000)(pruned, folder)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / f"{FILE}.index.json").read_text())
    assert len(shards) > 1
    assert list(index["seals"]) == shards
    assert told.checks[0].file == f"{FILE}.index.json"
    assert set(told.files) == {path for path in folder.rglob("*") if path.is_file()}
    whole = ecoflap.load_packed(folder)
    assert list(whole) == list(model.state_dict())
    model.load_state_dict(whole)
    assert told.dense_bytes == sum((folder / name).stat().st_size for name in shards) + sum(
        tensor.dense_bytes - tensor.stored_bytes for tensor in told.tensors
    )


@pytest.mark.parametrize("size", [0, -1])
def test_a_shard_holds_something(size: int):
    with pytest.raises(EcoflapError, match="shard_bytes is how much a file holds, 1 or more"):
        Safetensors(shard_bytes=size)


def test_a_model_of_no_known_family(folder: Path):
    model = nn.Sequential(nn.Linear(20, 30))
    mask = torch.rand(30, 20) > 0.5
    model[0].weight.data *= mask
    model[0].weight.data[~mask] *= -1.0
    told = Safetensors()(PrunedModel(model, Family(), {"0.weight": mask}), folder)
    assert set(told.files) == {folder / FILE, folder / CARD}
    back = load_packed(folder / FILE)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_pruned_is_said_before_anything_is_written(folder: Path):
    with pytest.raises(EcoflapError, match="nothing in this model has been pruned"):
        Safetensors()(PrunedModel(nn.Linear(3, 2), Family(), {}), folder)
    assert list(folder.iterdir()) == []


def test_types_that_the_format_lacks_are_known_before_a_run():
    pruned = half_pruned(ANY)
    assert list(Safetensors().problems(planned(pruned.model, pruned.adapter))) == []
    anatomy = planned(pruned.model, pruned.adapter).anatomy
    name, layer = next((layer.name, layer) for _, layer in anatomy.layers())
    layer.module._parameters[layer.attribute] = nn.Parameter(layer.weight.to(torch.complex64))
    found = list(Safetensors().problems(PlanContext(None, anatomy, pruned.adapter, pruned.model)))
    assert any(text.startswith(f"{name} is torch.complex64, which this format does not store") for text in found)
    assert any(text.startswith(f"{name} has a mask but is torch.complex64") for text in found)


def test_masks_under_each_name_of_a_tied_weight(folder: Path):
    tied = nn.ModuleDict({"embed": nn.Linear(20, 30, bias=False), "head": nn.Linear(20, 30, bias=False)})
    tied["head"].weight = tied["embed"].weight
    mask = torch.rand(30, 20) > 0.5
    tied["head"].weight.data *= mask
    told = Safetensors()(PrunedModel(tied, Family(), {"head.weight": mask, "embed.weight": mask}), folder)
    assert [tensor.name for tensor in told.tensors] == ["embed.weight"]
    assert f"| **all of these** | {100 * (1 - int(mask.sum()) / 600):.2f} % |" in (folder / CARD).read_text()


def test_weights_that_moved_after_pruning_are_refused_by_name(folder: Path):
    pruned = half_pruned(ANY)
    name = next(iter(pruned.masks))
    with torch.no_grad():
        pruned.model.get_parameter(name).add_(1.0)
    with pytest.raises(EcoflapError, match=name):
        Safetensors()(pruned, folder)


def test_a_file_that_reads_back_differently_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pruned = half_pruned(ANY)
    state = {name: tensor + 1 for name, tensor in pruned.model.state_dict().items()}
    written = exporter.save_packed
    monkeypatch.setattr(exporter, "save_packed", lambda path, _, __, **keys: written(path, state, {}, **keys))
    with pytest.raises(FormatError, match="reads back other than it was written"):
        Safetensors()(pruned, folder)


def test_the_model_is_as_before(folder: Path):
    pruned = half_pruned(ANY)
    model = pruned.model
    before = bits(model)
    config = model.config.to_dict() if hasattr(model, "config") else None
    Safetensors()(pruned, folder)
    assert bits(model) == before
    assert config is None or model.config.to_dict() == config


@pytest.mark.parametrize("name", [name for name in ROWS if name in ("llama", "llama-tied", "open_clip_eva", "t5")])
def test_densified_it_is_an_ordinary_file(name: str, folder: Path, tmp_path: Path):
    pruned = half_pruned(name)
    model = pruned.model
    Safetensors(shard_bytes=20_000)(pruned, folder)
    for file in (folder / f"{FILE}.index.json", folder / FILE):
        target = Safetensors.densify(file, tmp_path / "dense.safetensors")
        dense, state = load_file(target), model.state_dict()
        aliases = {name for name, entry in inspect_packed(folder).tensors.items() if entry.same_as is not None}
        assert set(dense) == set(state) - aliases
        for key, tensor in dense.items():
            assert tensor.dtype == state[key].dtype
            assert torch.equal(tensor, state[key])
        with safe_open(target, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_a_damaged_file_is_not_densified(folder: Path, tmp_path: Path):
    Safetensors()(half_pruned(ANY), folder)
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="damaged"):
        Safetensors.densify(folder / FILE, tmp_path / "dense.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]
