"""The loader of TorchScript files refuses what is none, and says which files are meant."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ecoflap import torchscript
from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.sums import write_sums
from ecoflap.exporters.torchscript.store import quiet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One like an export's, with a file of TorchScript, one of tensors, and one that is neither."""
    folder = tmp_path / "views"
    folder.mkdir()
    with quiet():
        torch.jit.script(nn.Linear(2, 2)).save(folder / "text.pt")
    torch.save({"weight": torch.ones(2)}, folder / "state.bin")
    (folder / "vision.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    write_sums(folder)
    return folder


@pytest.mark.parametrize("name", ["vision.onnx", "state.bin"])
def test_a_listed_file_of_another_kind_is_none_of_torchscript(folder: Path, name: str):
    assert torchscript.load(folder / "text.pt")(torch.ones(1, 2)).shape == (1, 2)
    with pytest.raises(FormatError) as told:
        torchscript.load(folder / name)
    assert str(told.value) == f"{folder / name} is no TorchScript file; beside it such is {folder / 'text.pt'}."
    (folder / "text.pt").unlink()
    with pytest.raises(FormatError, match=r"is no TorchScript file; beside it is none\.$"):
        torchscript.load(folder / name)


def test_of_a_folder_its_files_are_named(folder: Path):
    with pytest.raises(FormatError, match=rf"{folder} is a folder: name the file .* of {folder / 'text.pt'}\.$"):
        torchscript.load(folder)


def test_a_file_that_was_moved_out_of_its_folder_is_said_to_be(folder: Path, tmp_path: Path):
    moved = shutil.move(folder / "text.pt", tmp_path / "text.pt")
    with pytest.raises(FormatError, match=r"moved out of the folder of its export\. Move it back or"):
        torchscript.load(moved)
