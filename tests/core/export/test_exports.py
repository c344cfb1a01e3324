"""Exports: their names, and when one is there already."""

from dataclasses import dataclass

import pytest
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Exported
from ecoflap.core.errors import EcoflapError
from ecoflap.core.export.exports import export, export_names, is_exported, weight_bytes
from ecoflap.core.recipe.part_spec import PartSpec

PRUNED = PrunedModel(nn.Linear(1, 1), LlamaAdapter(), {})


@dataclass
class Writer:
    """Writes a file of one letter."""

    letter: str

    def __call__(self, pruned, folder):
        (folder / "weights.bin").write_text(self.letter)
        (folder / "config.json").write_text("{}")
        return Exported((folder / "weights.bin", folder / "config.json"))


def part(letter):
    return PartSpec("exporter", "writer", {"letter": letter}, Writer)


@pytest.fixture
def write(tmp_path):
    def write(letter):
        export(tmp_path, "writer", part(letter), PRUNED)

    return write


def test_exports_of_one_kind_are_numbered():
    parts = [PartSpec("exporter", use, {}, Writer) for use in ("onnx", "a:B", "onnx", "onnx-simple", "onnx", "a:B")]
    names = export_names(parts)
    assert names[:3] == ["onnx", "a.B", "onnx-2"]
    assert len(set(names)) == len(names)


def test_it_is_there_only_as_this_exporter_wrote_it(write, tmp_path):
    assert not is_exported(tmp_path, "writer", part("a"))
    write("a")
    assert is_exported(tmp_path, "writer", part("a"))
    assert not is_exported(tmp_path, "writer", part("b"))
    write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"
    assert is_exported(tmp_path, "writer", part("b"))
    assert not is_exported(tmp_path, "writer", part("a"))


def test_it_is_not_there_with_a_file_missing_or_cut(write, tmp_path):
    write("a")
    (tmp_path / "writer" / "weights.bin").write_text("")
    assert not is_exported(tmp_path, "writer", part("a"))
    (tmp_path / "writer" / "weights.bin").unlink()
    assert not is_exported(tmp_path, "writer", part("a"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", r"expected a mapping"),
        ("{", r"cannot be read"),
        ('{"files": {}}', r"exporter: Field required\. Delete the file"),
        ('{"exporter": {}, "files": {"weights.bin": 3}}', r"files\.weights\.bin: Input should be .*Delete the file"),
        ('{"exporter": {}, "files": {"x": {"sha256": ""}}}', r"files\.x\.bytes: Field required"),
        ('{"exporter": {}, "files": {}, "of": 2}', r"of: no such key is known here"),
    ],
)
def test_a_record_that_is_damaged_or_older_is_refused_by_name(content, reason, write, tmp_path):
    write("a")
    (tmp_path / "writer.json").write_text(content)
    with pytest.raises(EcoflapError, match=rf"writer\.json.*{reason}"):
        is_exported(tmp_path, "writer", part("a"))
    write("a")
    assert is_exported(tmp_path, "writer", part("a"))


def test_the_old_record_never_speaks_of_newer_files(write, tmp_path, monkeypatch):
    write("a")

    def cut_off(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecoflap.core.export.exports.write_whole", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"
    assert not is_exported(tmp_path, "writer", part("a"))


def test_an_exporter_for_another_version_is_told(tmp_path):
    class Older(Writer):
        def __call__(self, pruned, folder):
            return list(super().__call__(pruned, folder).files)

    with pytest.raises(EcoflapError, match="the exporter older returned list, not Exported"):
        export(tmp_path, "older", PartSpec("exporter", "older", {"letter": "a"}, Older), PRUNED)
    assert list(tmp_path.iterdir()) == []


def test_only_weights_are_counted(write, tmp_path):
    write("a")
    assert weight_bytes(tmp_path / "writer") == 1
