"""A model that is loaded without an adapter of the user's: nobody could reach its processor, and none is read."""

from pathlib import Path

import pytest
from exported import bits, half_pruned
from table import ROWS, marked

import ecoflap
from ecoflap.adapters.hubs.hugging_face import IMAGE_FILES, TEXT_FILES
from ecoflap.core.errors import ModelError
from ecoflap.exporters.safetensors import Safetensors

WHOLE = [name for name in sorted(ROWS) if ROWS[name].is_whole_on_disk]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


@pytest.mark.parametrize("name", marked(WHOLE))
def test_it_is_read_with_an_adapter_that_was_given_alone(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    pruned, asked = half_pruned(name), []
    Safetensors()(pruned, folder)
    for file in folder.iterdir():
        if file.name in (*TEXT_FILES, *IMAGE_FILES):
            file.write_bytes(b"\xff")  # which no reader takes
    monkeypatch.setattr(type(pruned.adapter), "read_processor", lambda *_: asked.append(name))
    assert bits(ecoflap.load_model(folder)) == bits(pruned.model)
    assert asked == []
    ecoflap.load_model(folder, adapter=type(pruned.adapter)())
    assert asked == [name]


@pytest.mark.parametrize("name", [name for name in WHOLE if name in ("t5", "clip")])
def test_one_that_cannot_be_read_keeps_nobody_from_the_model(name: str, folder: Path):
    pruned = half_pruned(name)
    Safetensors()(pruned, folder)
    (folder / "tokenizer.json").write_bytes(b"\xff")
    assert bits(ecoflap.load_model(folder)) == bits(pruned.model)
    with pytest.raises(ModelError, match=r"the tokenizer or processor of .* cannot be read"):
        ecoflap.load_model(folder, adapter=type(pruned.adapter)())
