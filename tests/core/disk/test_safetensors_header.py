"""The header of a safetensors file."""

import json

import torch
from safetensors.torch import load_file

from ecoflap.core.disk.safetensors_header import StoredAs, header_of, in_file_order, starts_of

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
