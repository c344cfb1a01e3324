"""The masks of a run or of a packed export, without its model."""

import pytest
import torch

import ecoflap
from ecoflap.core.errors import FormatError
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.pruning.masks import save_masks

MASK = torch.arange(96).reshape(6, 16) % 2 == 0
"""Of a weight that is stored packed."""
FEW = torch.tensor([[True, False]])
"""Of a weight that is so small that it is stored dense."""


@pytest.fixture
def export(tmp_path):
    (tmp_path / "export").mkdir()
    weight = torch.rand(6, 16).add(1).masked_fill(~MASK, 0)
    state = {"embed": weight, "head": weight, "few": torch.ones(1, 2).masked_fill(~FEW, 0), "bias": torch.ones(6)}
    save_packed(tmp_path / "export" / "model.packed.safetensors", state, {"head": MASK, "few": FEW}, shard_bytes=1)
    return tmp_path / "export"


def test_of_a_packed_export(export):
    found = ecoflap.load_masks(export)
    assert list(found) == ["embed", "head", "few"]
    assert all(torch.equal(found[name], mask) for name, mask in (("embed", MASK), ("head", MASK), ("few", FEW)))
    assert list(ecoflap.load_masks(str(export / "model.packed.safetensors"))) == ["embed", "head", "few"]


def test_of_a_run(tmp_path):
    save_masks(tmp_path / "masks.safetensors", {"head": MASK})
    for named in (tmp_path, tmp_path / "masks.safetensors", str(tmp_path)):
        found = ecoflap.load_masks(named)
        assert list(found) == ["head"]
        assert torch.equal(found["head"], MASK)


def test_what_holds_no_masks_is_refused(tmp_path, export):
    with pytest.raises(FormatError, match=r"holds no masks: it has neither masks\.safetensors"):
        ecoflap.load_masks(tmp_path)
    with pytest.raises(FormatError, match="there is no such file"):
        ecoflap.load_masks(tmp_path / "nowhere")
    shard = min(export.glob("*-of-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match=shard.name):
        ecoflap.load_masks(export)
