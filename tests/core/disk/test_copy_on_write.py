"""Bytes of a file that may be written to in memory: the file stays, no descriptor is held, and all of it goes again."""

import gc
import mmap
import os
from pathlib import Path

import pytest
import torch

from ecoflap.core.disk.copy_on_write import copy_on_write

FILE = bytes(range(256)) * 64


@pytest.fixture
def file(tmp_path):
    (tmp_path / "file").write_bytes(FILE)
    return tmp_path / "file"


@pytest.mark.parametrize("begin", [0, 8, 4095, 4096, 5000])
@pytest.mark.parametrize("size", [0, 1, 4096, 9000])
@pytest.mark.parametrize("system", ["this one", "one without mmap's flags"])
def test_bytes_are_those_of_the_file_and_writing_leaves_it_as_it_was(file, begin, size, system, monkeypatch):
    if system != "this one":
        monkeypatch.delattr(mmap, "PROT_READ")
    found = copy_on_write(file, begin, size)
    assert found.numpy().tobytes() == FILE[begin : begin + size]
    found += 1
    assert copy_on_write(file, begin, size).numpy().tobytes() == FILE[begin : begin + size]
    assert file.read_bytes() == FILE


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system does not say what is mapped")
def test_a_mapping_holds_no_descriptor_and_goes_with_the_last_tensor_over_it(file):
    before = len(os.listdir("/proc/self/fd"))
    held = [copy_on_write(file, 8, 100)[10:] for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/maps").read_text().count(str(file)) == 20
    held.clear()
    gc.collect()
    assert str(file) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="Windows says it otherwise")
def test_what_cannot_be_mapped_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="file"):
        copy_on_write(tmp_path / "file", 0, 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="memory"):
        copy_on_write(tmp_path / "file", 0, 1 << 62)


def test_a_tensor_of_another_type_lies_over_the_bytes(file):
    found = copy_on_write(file, 16, 32).view(torch.int16).view(4, 4)
    assert int(found[0, 1]) == 18 + 19 * 256
