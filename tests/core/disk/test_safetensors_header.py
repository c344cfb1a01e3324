"""The header of a safetensors file."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from ecoflap.core.disk.safetensors_header import StoredAs, header_of, in_file_order, starts_of, why_not_whole

TENSORS = {
    "byte": StoredAs(torch.uint8, (3,)),
    "wide": StoredAs(torch.float64, (2, 1)),
    "half": StoredAs(torch.bfloat16, ()),
}


def test_the_widest_come_first_so_that_all_are_aligned():
    assert in_file_order(TENSORS) == ["wide", "half", "byte"]
    assert starts_of(TENSORS) == {"wide": 0, "half": 16, "byte": 18}
    assert len(header_of(TENSORS, {"format": "pt"})) % 64 == 0


def test_the_library_reads_a_file_that_begins_with_it(tmp_path):
    data = torch.tensor([1.5, -2.0], dtype=torch.float64).view(torch.uint8).numpy().tobytes()
    data += torch.tensor(0.5, dtype=torch.bfloat16).reshape(1).view(torch.uint8).numpy().tobytes() + bytes([7, 8, 9])
    (tmp_path / "x").write_bytes(header_of(TENSORS, {"format": "pt"}) + data)
    read = load_file(tmp_path / "x")
    assert read["wide"].tolist() == [[1.5], [-2.0]]
    assert read["byte"].tolist() == [7, 8, 9]
    assert read["half"].item() == 0.5


def test_its_length_depends_on_the_metadatas_length_alone():
    lengths = {len(header_of(TENSORS, {"sha256": letter * 64})) for letter in "0af"}
    assert len(lengths) == 1
    header = header_of(TENSORS, {"sha256": "f" * 64})
    assert json.loads(header[8:])["__metadata__"] == {"sha256": "f" * 64}


WHOLE = save({"a": torch.ones(3, 5), "b": torch.ones(4, dtype=torch.bfloat16)}, {"format": "pt"})


@pytest.mark.parametrize("tensors", [{}, {"a": torch.ones(3, 5), "none": torch.ones(0, 2)}])
def test_a_file_of_the_librarys_own_is_whole(tmp_path, tensors):
    save_file(tensors, tmp_path / "x")
    assert why_not_whole(tmp_path / "x") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_off_anywhere_is_told_by_its_name(tmp_path, length):
    (tmp_path / "x").write_bytes(WHOLE[:length])
    assert (why_not_whole(tmp_path / "x") or "").startswith(f"{tmp_path / 'x'} is cut off")


def test_how_many_bytes_are_missing_or_too_many_is_told(tmp_path):
    for data, said in (WHOLE[:-1], "cut off: it has"), (WHOLE + b"x", "damaged: it has"):
        (tmp_path / "x").write_bytes(data)
        counts = f"{len(data)} bytes, and its header speaks of {len(WHOLE)}."
        assert why_not_whole(tmp_path / "x") == f"{tmp_path / 'x'} is {said} {counts} Fetch or write it anew."


@pytest.mark.parametrize("header", ["[]", "{", '{"a": 1}', '{"a": {"dtype": "F32"}}', "[" * 500, "\0", '{"a": null}'])
def test_a_header_of_another_form_is_told(tmp_path, header):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert "its header cannot be read" in (why_not_whole(tmp_path / "x") or "")


def test_a_file_that_is_not_there_is_told(tmp_path):
    file = tmp_path / "x"
    assert why_not_whole(file) == f"{file} cannot be read: No such file or directory. Fetch or write it anew."
