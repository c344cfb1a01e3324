"""What an evaluator remembers of the dense model: a file that is what was written, or is named."""

import os
from functools import partial

import pytest
import torch

from ecoflap.core.errors import EcoflapError, FormatError
from ecoflap.core.record.remembered import (
    check_remembered,
    open_remembered,
    take_over_remembered,
    write_remembered,
)
from ecoflap.core.sealing.sealed import open_sealed

TENSORS = {
    "rows 0": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).T,
    "half": torch.arange(5, dtype=torch.bfloat16),
    "none": torch.empty(0, 7),
    "right": torch.tensor([True, False]),
    "one": torch.tensor(7),
}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "dense" / "mine.safetensors"
    return path, write_remembered(path, "mine", TENSORS)


def read(path, seal):
    with open_remembered(path, seal) as found:
        return dict(found)


def test_what_was_written_is_read_bit_by_bit(written):
    found = read(*written)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_tensor_is_read_when_it_is_asked_for(written):
    path, seal = written
    with open_remembered(path, seal) as found:
        assert (len(found), sorted(found), "other" in found, found.get("other")) == (5, sorted(TENSORS), False, None)
        with pytest.raises(KeyError):
            found["other"]


def test_the_same_is_written_with_the_same_bits(written, tmp_path):
    path, seal = written
    assert write_remembered(tmp_path / "again.safetensors", "mine", TENSORS) == seal
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


WAY_OUT = r"\. Restore the file, or delete it and run again: the dense model is then evaluated anew\."


def test_every_bit_is_looked_at(written):
    path, seal = written
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FormatError, match=f"{path}.*{WAY_OUT}"):
            check_remembered(path, seal)
    path.write_bytes(whole)
    check_remembered(path, seal)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_off_or_is_gone(written, share):
    path, seal = written
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FormatError, match=f"{path} is truncated.*{WAY_OUT}"):
        read(path, seal)
    path.unlink()
    with pytest.raises(FormatError, match=f"{path}: there is no such file{WAY_OUT}"):
        read(path, seal)


def test_another_file_is_refused_though_it_is_whole(written):
    path, seal = written
    other = write_remembered(path, "mine", {**TENSORS, "one": torch.tensor(8)})
    assert other != seal
    with pytest.raises(FormatError, match=f"mine.safetensors is not the file that evaluations.jsonl knows.*{WAY_OUT}"):
        read(path, seal)


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "None"),
        ({}, "{}"),
        ([torch.zeros(1)], r"\[tensor"),
        ({"a": 1.5}, "1.5"),
        ({3: torch.zeros(1)}, "3"),
        ({"\ud800": torch.zeros(1)}, "ud800"),
    ],
    ids=str,
)
def test_an_answer_that_is_no_mapping_of_tensors_is_refused(found, shown, tmp_path):
    with pytest.raises(EcoflapError, match=f"the evaluator mine, asked for what to remember, answered with .*{shown}"):
        write_remembered(tmp_path / "mine.safetensors", "mine", found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("can_link", [True, False])
def test_another_run_takes_it_over(written, tmp_path, monkeypatch, can_link):
    def refused(*_):
        raise PermissionError

    if not can_link:
        monkeypatch.setattr(os, "link", refused)
    (path, seal), target = written, tmp_path / "other" / "dense" / "mine.safetensors"
    take_over_remembered(path, seal, target)
    assert target.samefile(path) == can_link
    path.unlink()
    with open_sealed(target, "ecoflap.remembered") as file:
        assert file.seal == seal
    check_remembered(target, seal)


def test_what_is_damaged_is_not_taken_over(written, tmp_path):
    (path, seal), target = written, tmp_path / "other.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x09")
    with pytest.raises(FormatError, match=rf"{path}: the tensor .* is damaged.*{WAY_OUT}"):
        take_over_remembered(path, seal, target)
    assert not target.exists()


def test_what_an_evaluator_says_of_a_file_of_its_own_has_no_way_out_of_ours(written):
    def own(path, seal):
        with open_remembered(path, seal):
            raise FormatError("their.bin is damaged.")

    with pytest.raises(FormatError) as caught:
        partial(own, *written)()
    assert caught.value.problems == ("their.bin is damaged.",)


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.ones(2, dtype=torch.complex64), "complex64"), (torch.eye(2).to_sparse(), "sparse_coo")],
)
def test_what_no_file_holds_is_told_by_what_it_is(tensor, kind, tmp_path):
    with pytest.raises(EcoflapError, match=rf"remember, gave what no file holds: rows is {kind}\. Have it give dense"):
        write_remembered(tmp_path / "mine.safetensors", "mine", {"rows": tensor})
