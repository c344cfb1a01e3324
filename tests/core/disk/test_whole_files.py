"""Files appear whole or not at all, whatever happens while they are written."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ecoflap.core.disk import whole_files as files
from ecoflap.core.disk.reading import ReadError
from ecoflap.core.disk.whole_files import (
    delete_whole,
    link_or_copy,
    removed_leftovers,
    sha256_of,
    whole_file,
    whole_folder,
    write_whole,
)
from ecoflap.core.errors import RunError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(number: int):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def test_write_whole_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_whole(path, "é")
    assert path.read_bytes() == "é".encode()
    write_whole(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert names(path.parent) == ["b.json"]


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_what_a_library_writes_for_its_user_alone_gets_the_mode_that_the_umask_says(tmp_path, umask):
    with whole_folder(tmp_path / "model") as folder:
        (folder / "inside").mkdir()
        for file in (folder / "model.safetensors", folder / "inside" / "adapter.safetensors"):
            save_file({"weight": torch.zeros(2)}, file)
    with whole_file(tmp_path / "alone.safetensors") as file:
        save_file({"weight": torch.zeros(2)}, file)
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.name for path in written] == ["alone.safetensors", "adapter.safetensors", "model.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~umask}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_private_file_that_has_another_name_stays_private(tmp_path):
    (tmp_path / "own").write_text("mine")
    (tmp_path / "own").chmod(0o600)
    with whole_folder(tmp_path / "linked") as folder:
        link_or_copy(tmp_path / "own", folder / "own")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_mode_that_nobody_may_change_stops_no_write(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "chmod", failing(errno.EPERM))
    with whole_file(tmp_path / "alone.safetensors") as file:
        save_file({"weight": torch.zeros(2)}, file)
    assert (tmp_path / "alone.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch, number, words, call):
    path = tmp_path / "plan.json"
    write_whole(path, "old")
    monkeypatch.setattr(files.os, call, failing(number))
    with pytest.raises(RunError, match=words) as caught:
        write_whole(path, "new")
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["plan.json"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from ecoflap.core.errors import RunError
{body}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write(Path(sys.argv[1]))
except RunError as error:
    print(error)
"""

BODIES = {
    "write_whole": """
from ecoflap.core.disk.whole_files import write_whole
write = lambda path: write_whole(path, bytes(9999))
""",
    "save_packed": """
from ecoflap.core.packed.save_packed import save_packed
write = lambda path: save_packed(path, {"w": torch.ones(9999)}, {"w": torch.ones(9999) > 0})""",
    "whole_folder": """
from safetensors.torch import save_file
from ecoflap.core.disk.whole_files import whole_folder
def write(path):
    with whole_folder(path) as folder:
        save_file({"w": torch.ones(9999)}, folder / "w.safetensors")""",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_file_system_that_takes_no_more_keeps_the_old_file(tmp_path, body):
    path = tmp_path / "x"
    path.write_text("old\n")
    code = LIMITED.format(body=BODIES[body])
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout, done.stderr
    assert path.read_text() == "old\n"
    assert names(tmp_path) == ["x"]


KILLED = """
import sys, time
from pathlib import Path
from ecoflap.core.disk.whole_files import {name}
path = Path(sys.argv[1])
with {name}(path) as temporary:
    half = temporary if {name}.__name__ == "whole_file" else temporary / "half"
    half.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["whole_file", "whole_folder"])
def test_a_process_killed_while_writing_leaves_the_old_one(tmp_path, name):
    path = tmp_path / "x"
    path.mkdir() if name == "whole_folder" else path.write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(name=name), path], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [".x.partial", "x"]
    assert path.is_dir() or path.read_text() == "old"
    assert removed_leftovers(tmp_path) == [tmp_path / ".x.partial"]
    assert names(tmp_path) == ["x"]


def test_whole_folder_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with whole_folder(path) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").write_text(content)
            assert content == "old" or (path / "sub" / "a").read_text() == "old"
    assert (path / "sub" / "a").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_whole_folder_keeps_the_old_one_when_the_block_or_the_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with whole_folder(path) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(path):
        raise KeyboardInterrupt
    rename = os.rename
    monkeypatch.setattr(
        files.os, "rename", lambda a, b: failing(errno.EACCES)() if a.name == ".model.partial" else rename(a, b)
    )
    with pytest.raises(RunError), whole_folder(path):
        pass
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("cure", ["removed_leftovers", "whole_folder"])
def test_a_kill_between_the_two_renames_is_mended(tmp_path, cure):
    (tmp_path / ".model.replaced").mkdir()
    (tmp_path / ".model.replaced" / "a").write_text("old")
    (tmp_path / ".model.partial").mkdir()
    if cure == "removed_leftovers":
        removed_leftovers(tmp_path)
    else:
        with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "model"):
            raise ZeroDivisionError
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_half_of_a_deleted_folder_is_a_leftover_and_no_folder(tmp_path, monkeypatch):
    folder = tmp_path / "blocks"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "1").write_bytes(b"1")
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *args, **keys: None)
        delete_whole(folder)
    assert not folder.exists()
    assert removed_leftovers(tmp_path) == [tmp_path / ".blocks.partial"]
    folder.mkdir()
    delete_whole(folder)
    delete_whole(folder)
    assert list(tmp_path.iterdir()) == []


def test_removed_leftovers_looks_below_and_spares_the_rest(tmp_path):
    deep = tmp_path / "a" / ".b.partial"
    deep.mkdir(parents=True)
    (deep / ".c.partial").write_text("")
    (tmp_path / "a" / "kept.partial").write_text("")
    (tmp_path / ".done.replaced").mkdir()
    (tmp_path / "done").mkdir()
    assert removed_leftovers(tmp_path) == [deep]
    assert names(tmp_path) == ["a", "done"]
    assert names(tmp_path / "a") == ["kept.partial"]
    assert removed_leftovers(tmp_path / "nowhere") == []


def test_sha256_of(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_what_cannot_be_hashed_is_told(tmp_path, pipe, unreadable):
    (tmp_path / "locked").touch()
    unreadable(tmp_path / "locked")
    for path, why in (
        (tmp_path, "Is a directory"),
        (pipe, "it is no file"),
        (tmp_path / "locked", "Permission denied"),
    ):
        with pytest.raises(ReadError, match=f"{path.name} cannot be read: {why}"):
            sha256_of(path)
