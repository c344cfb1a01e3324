"""Weights that stay in their files: what they hold of memory, of which type they are, whether a file has changed."""

import errno
import os
from pathlib import Path

import pytest
import torch
from sparse import memory_and_swap, write_zeros

from ecoflap.core.disk.whole_files import removed_leftovers
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.machine.memory import held
from ecoflap.core.model import mapped_weights
from ecoflap.core.model.mapped_weights import MappedWeights, Place, mapped_beside
from ecoflap.core.sealing.sealed import sealed, write_safetensors

SIZE = 32 << 20
"""Bytes of a weight: more than anything else that is held or freed meanwhile."""


@pytest.fixture
def stored(tmp_path):
    """A file with two weights."""
    weights = {name: torch.randn(SIZE // 4096, 1024) for name in ("a", "b")}
    write_safetensors(tmp_path / "model.safetensors", {name: sealed(one) for name, one in weights.items()})
    return tmp_path / "model.safetensors", weights


def place(file, name):
    return Place(file, name, name)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not tell files from other memory")
def test_a_mapped_weight_holds_memory_only_where_it_is_written_to(stored, tmp_path):
    file, weights = stored
    mapped = MappedWeights(tmp_path / "scratch")
    before = held()
    a, b = (mapped.map(name, place(file, name), torch.float32) for name in ("a", "b"))
    assert torch.equal(a, weights["a"])
    assert torch.equal(b, weights["b"])
    assert held() - before < SIZE / 4

    a.mul_(2)
    assert held() - before > SIZE * 3 / 4
    write_safetensors(tmp_path / "written.safetensors", {"a": sealed(a)})
    a = mapped.moved("a", place(tmp_path / "written.safetensors", "a"))
    assert held() - before < SIZE / 4
    assert torch.equal(a, 2 * weights["a"])
    again = mapped.map("a", place(file, "a"), torch.float32)
    assert torch.equal(again, weights["a"])  # nothing is written into the file it comes from


def test_another_type_is_written_where_there_is_room_and_keeps_its_name_on_disk(stored, tmp_path):
    file, weights = stored
    mapped = MappedWeights(tmp_path / "scratch")
    found = mapped.map("model.a", place(file, "a"), torch.bfloat16)
    assert torch.equal(found, weights["a"].bfloat16())
    assert mapped.places["model.a"].file.parent == tmp_path / "scratch"
    assert mapped.places["model.a"].name_on_disk == "a"


def test_a_network_disk_may_keep_the_folder_of_what_is_mapped(stored, tmp_path, monkeypatch):
    """There a file that is in use gets another name in its folder instead of none, until it is let go."""
    file, weights = stored
    remove = os.rmdir

    def keeping(path, **how):
        if ".weights-" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        remove(path, **how)

    monkeypatch.setattr(os, "rmdir", keeping)
    with mapped_beside(tmp_path / "run") as mapped:
        narrow = mapped.map("a", place(file, "a"), torch.bfloat16)
    assert torch.equal(narrow, weights["a"].bfloat16())
    (kept,) = (tmp_path / "run").iterdir()
    monkeypatch.undo()
    assert removed_leftovers(tmp_path / "run") == [kept]


@pytest.mark.parametrize("change", ["touched", "gone"])
def test_a_file_that_changes_is_named(stored, tmp_path, change):
    file, _ = stored
    mapped = MappedWeights(tmp_path / "scratch")
    mapped.map("a", place(file, "a"), torch.float32)
    mapped.refuse_changed()
    if change == "gone":
        file.rename(tmp_path / "elsewhere")
    else:
        os.utime(file, ns=(0, 0))
    with pytest.raises(RunError, match=r"model\.safetensors changed while .* What is finished is kept"):
        mapped.refuse_changed()


def test_what_is_made_beside_the_model_is_not_asked_for_again(stored, tmp_path):
    file, _ = stored
    mapped = MappedWeights(tmp_path / "scratch")
    mapped.map("a", place(file, "a"), torch.float16)
    mapped.places["a"].file.unlink()
    mapped.refuse_changed()
    mapped.read_ahead(["a", "b"])  # neither what is gone nor what is unknown is looked for


def test_reading_ahead_asks_for_the_bytes_of_the_weights(stored, tmp_path, monkeypatch):
    file, _ = stored
    mapped = MappedWeights(tmp_path / "scratch")
    for name in ("a", "b"):
        mapped.map(name, place(file, name), torch.float32)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *extent: asked.append(extent[:2]), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    mapped.read_ahead(["b"])
    [(begin, length)] = asked
    assert length == SIZE
    assert (
        file.read_bytes()[begin : begin + 4]
        == mapped.map("b", place(file, "b"), torch.float32)[0, :1].numpy().tobytes()
    )


@pytest.mark.parametrize("written", ["read", "written"])
def test_a_weight_of_one_file_that_is_larger_than_memory_is_mapped(tmp_path, written):
    file = tmp_path / "model.safetensors"
    write_zeros(file, {"large": ("U8", (memory_and_swap() + (1 << 30),)), "small": ("F32", (4, 2))})
    mapped = MappedWeights(tmp_path / "scratch")
    weight = mapped.map("small", place(file, "small"), torch.float32)
    assert torch.equal(weight, torch.zeros(4, 2))
    if written == "written":
        weight += 1
        assert torch.equal(mapped.map("small", place(file, "small"), torch.float32), torch.zeros(4, 2))


def test_a_weight_that_is_not_there_or_of_an_unknown_type_is_named(stored, tmp_path, monkeypatch):
    file, _ = stored
    mapped = MappedWeights(tmp_path / "scratch")
    with pytest.raises(FormatError, match=r"model\.safetensors has no tensor c\. Fetch or write the model anew"):
        mapped.map("c", place(file, "c"), torch.float32)
    monkeypatch.setattr(mapped_weights, "DTYPES", {})
    with pytest.raises(FormatError, match=r"the weight a is of the type F32, which model\.offload: disk does not know"):
        mapped.map("a", place(file, "a"), torch.float32)
