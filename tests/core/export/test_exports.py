"""Exports: their names, and when one is there already."""

import errno
import os
import shutil
from dataclasses import dataclass
from hashlib import sha256

import pytest
from sealed_by_hand import write_sealed
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Exported
from ecoflap.core.errors import EcoflapError, FormatError, RunError
from ecoflap.core.export.exports import export, export_names, is_exported, read_record, weight_bytes
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.manifest import read_manifest
from ecoflap.core.sealing.sums import read_sums

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
    assert names[3:] == ["onnx-simple", "onnx-3", "a.B-2"]


def test_one_that_is_called_as_another_would_be_numbered():
    parts = [PartSpec("exporter", use, {}, Writer) for use in ("onnx-2", "onnx", "onnx", "onnx-2", "onnx")]
    assert export_names(parts) == ["onnx-2", "onnx", "onnx-3", "onnx-2-2", "onnx-4"]


def test_a_folder_in_the_place_of_the_record_is_refused_and_left_alone(write, tmp_path):
    (tmp_path / "writer.json").mkdir()
    (tmp_path / "writer.json" / "notes.txt").touch()
    for use in (lambda: write("a"), lambda: is_exported(tmp_path, "writer", part("a"))):
        with pytest.raises(RunError, match=r"writer\.json is a folder, and what is known of the export writer is writ"):
            use()
    assert [path.name for path in tmp_path.rglob("*")] == ["writer.json", "notes.txt"]


def test_it_is_there_only_as_this_exporter_wrote_it(write, tmp_path):
    assert not is_exported(tmp_path, "writer", part("a"))
    write("a")
    assert is_exported(tmp_path, "writer", part("a"))
    assert not is_exported(tmp_path, "writer", part("b"))
    write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"
    assert is_exported(tmp_path, "writer", part("b"))
    assert not is_exported(tmp_path, "writer", part("a"))


def test_manifest_list_and_record_say_the_same_of_every_file(write, tmp_path):
    write("a")
    inside = tmp_path / "writer"
    recorded = {name: entry.sha256 for name, entry in read_record(tmp_path / "writer.json").files.items()}
    assert recorded == {file.name: sha256(file.read_bytes()).hexdigest() for file in inside.iterdir()}
    listed = {name: recorded[name] for name in ("config.json", "manifest.json", "weights.bin")}
    assert dict(read_sums(inside)) == listed
    written = {name: entry.sha256 for name, entry in read_manifest(inside / "manifest.json").files.items()}
    assert written == {name: recorded[name] for name in ("config.json", "weights.bin")}


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json", "SHA256SUMS"])
def test_it_is_not_there_with_a_file_missing(write, tmp_path, name):
    write("a")
    (tmp_path / "writer" / name).unlink()
    assert not is_exported(tmp_path, "writer", part("a"))


@pytest.mark.parametrize("name", ["weights.bin", "config.json", "SHA256SUMS"])
def test_one_that_was_changed_is_refused_and_not_replaced(write, tmp_path, name):
    """At the same length, which told nothing of it once."""
    write("a")
    data = (tmp_path / "writer" / name).read_bytes()
    (tmp_path / "writer" / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    told = rf"writer/{name} is not what was written: its SHA-256 is another than writer\.json says\. .* move the folder"
    with pytest.raises(FormatError, match=told):
        is_exported(tmp_path, "writer", part("a"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", r"Invalid JSON"),
        ('{"files": {}}', r"exporter: Field required\. Restore it; or delete it"),
        ('{"exporter": {}, "files": {"weights.bin": 3}}', r"files\.weights\.bin: Input should be .*or delete it"),
        ('{"exporter": {}, "files": {"x": {"sha256": ""}}}', r"files\.x\.bytes: Field required"),
        ('{"exporter": {}, "files": {}, "of": 2}', r"of: no such key is known here"),
    ],
)
def test_a_record_that_is_damaged_or_older_is_refused_by_name(content, reason, write, tmp_path):
    write("a")
    write_sealed(tmp_path / "writer.json", content)
    with pytest.raises(EcoflapError, match=rf"writer\.json.*{reason}"):
        is_exported(tmp_path, "writer", part("a"))
    write("a")
    assert is_exported(tmp_path, "writer", part("a"))


def test_the_old_record_never_speaks_of_newer_files(write, tmp_path, monkeypatch):
    write("a")

    def cut_off(path, data):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecoflap.core.export.exports.write_sealed_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"
    assert not is_exported(tmp_path, "writer", part("a"))


def test_a_full_disk_is_no_mistake_of_the_exporter(tmp_path):
    class Filling(Writer):
        def __call__(self, pruned, folder):
            (folder / "weights.bin").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="writer could not be written: the disk is full"):
        export(tmp_path, "writer", PartSpec("exporter", "writer", {"letter": "a"}, Filling), PRUNED)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_for_another_version_is_told(tmp_path):
    class Older(Writer):
        def __call__(self, pruned, folder):
            return list(super().__call__(pruned, folder).files)

    with pytest.raises(EcoflapError, match="the exporter older returned list, not Exported"):
        export(tmp_path, "older", PartSpec("exporter", "older", {"letter": "a"}, Older), PRUNED)
    assert list(tmp_path.iterdir()) == []


def test_only_weights_are_counted(write, tmp_path):
    write("a")
    assert weight_bytes(tmp_path, "writer") == 1


def test_what_somebody_put_beside_them_is_not_counted(write, tmp_path):
    write("a")
    (tmp_path / "writer" / "mine.bin").write_bytes(bytes(1000))
    assert weight_bytes(tmp_path, "writer") == 1


def test_of_an_export_that_was_deleted_nothing_is_counted(write, tmp_path):
    assert weight_bytes(tmp_path, "writer") == 0
    write("a")
    shutil.rmtree(tmp_path / "writer")
    assert weight_bytes(tmp_path, "writer") == 0


def test_a_record_that_is_damaged_is_named(write, tmp_path):
    write("a")
    raw = (tmp_path / "writer.json").read_bytes()
    (tmp_path / "writer.json").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FormatError, match=r"writer\.json.* Restore it; or delete it, and the run exports that again"):
        weight_bytes(tmp_path, "writer")


@dataclass
class Says(Writer):
    """Writes as it should, and says something else."""

    def __call__(self, pruned, folder):
        return SAID[self.letter](folder, super().__call__(pruned, folder))


def _exported(files, notes=()):
    """What an author may give, which the types that tests check would refuse before it is looked at."""
    given = object.__new__(Exported)
    for name, value in {"files": files, "tensors": (), "checks": (), "dense_bytes": None, "notes": notes}.items():
        object.__setattr__(given, name, value)
    return given


def _writing(name):
    def say(folder, written):
        (folder / name).write_text("mine")
        return Exported((*written.files, folder / name))

    return say


def _above(folder, written):
    (folder.parent / "above.bin").write_bytes(b"mine")
    return Exported((folder / ".." / "above.bin",))


def _linked(folder, written):
    (folder / "linked").symlink_to("/etc/hostname")
    return Exported((folder / "linked",))


SAID = {
    "a path": lambda folder, written: _exported(folder / "weights.bin"),
    "a text": lambda folder, written: _exported(written.files, notes="one note"),
    "a manifest": _writing("manifest.json"),
    "sums": _writing("SHA256SUMS"),
    "a link": _linked,
    "a file above": _above,
}


@pytest.mark.parametrize(
    ("letter", "told"),
    [
        ("a path", r"returned files with PosixPath\(.*: files is a tuple of paths"),
        ("a text", r"returned notes with 'one note': notes is a tuple of sentences"),
        ("a manifest", r"names manifest\.json, which is ours to write beside an export: name its file otherwise"),
        ("sums", r"names SHA256SUMS, which is ours to write"),
        ("a link", r"names '.*linked', which is no file of the folder"),
        ("a file above", r"names '.*/\.\./above\..*, which is no file of the folder"),
    ],
)
def test_an_exporter_that_says_something_else_is_told_what_is_wanted(tmp_path, letter, told):
    spec = PartSpec("exporter", "writer", {"letter": letter}, Says)
    with pytest.raises(EcoflapError, match=rf"the exporter writer {told}"):
        export(tmp_path, "writer", spec, PRUNED)
    assert not (tmp_path / "writer").exists()


def test_a_folder_that_no_run_has_written_is_not_replaced(tmp_path):
    own = tmp_path / "writer" / "mine.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(RunError, match="writer was written by no run, and the export would be put in its place"):
        export(tmp_path, "writer", part("a"), PRUNED)
    assert own.read_text() == "mine"
    own.unlink()
    export(tmp_path, "writer", part("a"), PRUNED)
    (tmp_path / "writer.json").unlink()  # as where a process was killed between the two
    export(tmp_path, "writer", part("b"), PRUNED)
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_file_that_somebody_has_put_beside_it_is_not_replaced(is_recorded, write, tmp_path):
    write("a")
    for name in (".hidden", "results.txt", "more/of.txt"):
        (tmp_path / "writer" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "writer" / name).write_text("mine")
    if not is_recorded:
        (tmp_path / "writer.json").unlink()
    with pytest.raises(
        RunError, match=r"writer holds what no export has written, more/of\.txt, results\.txt, and would"
    ):
        write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "a"
    (tmp_path / "writer" / "results.txt").unlink()
    (tmp_path / "writer" / "more" / "of.txt").unlink()
    write("b")
    assert (tmp_path / "writer" / "weights.bin").read_text() == "b"
