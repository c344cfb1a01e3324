"""What every checked file has in common, whatever its format."""

import json
import os

import pytest
import torch
from safetensors import safe_open

from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.sealing import sealed
from ecoflap.core.sealing.sealed import SealedTensor, flat, open_sealed, write_sealed


def parts(**tensors):
    return {
        name: SealedTensor(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    }


def opened(path, form="f"):
    with open_sealed(path, form) as file:
        return file.manifest, {name: file.read(name) for name in file.hashes}


def test_manifest_and_tensors_come_back_and_other_libraries_read_them(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.bool), "b": torch.randn(2, 3, dtype=torch.float64), "é": torch.ones(())}
    write_sealed(tmp_path / "x", "f", "any\ntext", parts(**tensors))
    manifest, back = opened(tmp_path / "x")
    assert manifest == "any\ntext"
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x", framework="np") as file:
        assert file.get_tensor("b").tolist() == tensors["b"].tolist()
        assert file.metadata()["format"] == "f"


def test_the_data_lies_aligned(tmp_path):
    write_sealed(tmp_path / "x", "f", "", parts(a=torch.ones(3, dtype=torch.uint8), b=torch.ones(3)))
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 64 == 0
    assert json.loads(data[8 : 8 + length])["b"]["data_offsets"] == [0, 12]


def test_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed, "VERSION", "2")
    write_sealed(tmp_path / "x", "f", "", {})
    monkeypatch.undo()
    with pytest.raises(FormatError, match=r"version '2'.*Update ecoflap"):
        opened(tmp_path / "x")


def test_another_format_is_refused(tmp_path):
    write_sealed(tmp_path / "x", "g", "", {})
    with pytest.raises(FormatError, match="not in the format 'f': its metadata says 'g'"):
        opened(tmp_path / "x")


@pytest.mark.parametrize("hashes", ["[", "[]", '{"w": 1}'])
def test_hashes_that_are_no_hashes_are_refused(tmp_path, hashes):
    metadata = {"format": "f", "version": sealed.VERSION, "manifest": "", "sha256": hashes}
    metadata["seal"] = sealed._seal("", hashes)
    header = json.dumps({"__metadata__": metadata}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FormatError, match="list of hashes is damaged"):
        opened(tmp_path / "x")


@pytest.mark.parametrize("tensor", [torch.zeros(4), torch.zeros(3, dtype=torch.int32)])
def test_a_part_that_is_not_what_was_announced_is_refused(tmp_path, tensor):
    with pytest.raises(EcoflapError, match=r"w is .* was announced"):
        write_sealed(tmp_path / "x", "f", "", {"w": SealedTensor(torch.float32, (3,), lambda: tensor)})
    assert os.listdir(tmp_path) == []


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FormatError, match=r"cannot be read: Is a directory\. A file is meant there\."):
        opened(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        opened(tmp_path / "nowhere")


def test_a_pipe_is_no_file_and_is_not_waited_on(pipe):
    with pytest.raises(FormatError, match=r"pipe cannot be read: it is no file, but a pipe, a device or the like"):
        opened(pipe)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, unreadable):
    write_sealed(tmp_path / "locked", "f", "", {})
    unreadable(tmp_path / "locked")
    with pytest.raises(FormatError, match=r"locked cannot be read: Permission denied\. Change its permissions"):
        opened(tmp_path / "locked")


@pytest.mark.parametrize("tensor", [torch.ones(9)[::9], torch.ones(1).expand(5), torch.ones(3, 4).T, torch.ones(0)])
def test_flat_can_be_viewed_as_bytes(tensor):
    assert flat(tensor).view(torch.uint8).numel() == 4 * tensor.numel()
