"""A failure to write says what is wrong and what to do; other errors are none of its business."""

import copy
import errno
import os
import pickle

import pytest

from ecoflap.core.disk import write_errors
from ecoflap.core.disk.whole_files import whole_file, whole_folder, write_whole
from ecoflap.core.disk.write_errors import NotWritten
from ecoflap.core.errors import RunError
from ecoflap.core.sealing.sealed_lines import append_line


def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_says_how_much_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"[\d,.]+ MB free\). Make room"):
        write_whole(tmp_path / "not" / "there" / "yet", "new")


@pytest.mark.parametrize("write", [lambda p: write_whole(p, "x"), lambda p: append_line(p, {})])
def test_a_path_through_a_file_is_an_error_that_names_it(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/below/x could not be written: .*(not a folder|has that name)"):
        write(tmp_path / "file" / "below" / "x")


def test_a_folder_of_that_name_is_an_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="a folder has that name"):
        write_whole(tmp_path / "x", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_the_block_raises_passes_through(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x") as temporary:
        raise ZeroDivisionError(temporary.write_text("half"))
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "x"):
        (tmp_path.parent / "elsewhere").read_text()
    with pytest.raises(ConnectionError), whole_folder(tmp_path / "y"):
        raise ConnectionError("no network")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_a_rust_library_only_prints_is_explained_too(tmp_path):
    with pytest.raises(RunError, match="the disk is full"), whole_folder(tmp_path / "x"):
        raise ValueError("I/O error: No space left on device (os error 28)")


def test_a_file_inside_of_what_is_not_there_yet_is_named_by_what_it_was_to_become(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(RunError, match=rf"^{tmp_path}/x could not be written: the disk is full"),
        whole_folder(tmp_path / "x") as inside,
    ):
        write_whole(inside / "manifest.json", "{}")
    with pytest.raises(RunError, match=rf"^{tmp_path}/elsewhere could not be written"), whole_folder(tmp_path / "x"):
        write_whole(tmp_path / "elsewhere", "{}")
    assert list(tmp_path.iterdir()) == []


def test_the_room_that_is_told_is_what_there_was_and_not_what_was_made_since(tmp_path, monkeypatch):
    free = iter([1_000_000, 7_200_000_000])
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(write_errors, "free_for", lambda path: next(free))
    told = r"/x could not be written: the disk is full \(1\.0 MB free\)"
    with pytest.raises(RunError, match=told), whole_folder(tmp_path / "x") as inside:
        write_whole(inside / "manifest.json", "{}")


def test_the_error_is_copied_and_built_anew_as_any_of_ours(tmp_path):
    with pytest.raises(NotWritten) as told:
        write_whole(tmp_path, "")
    for again in (
        copy.copy(told.value),
        pickle.loads(pickle.dumps(told.value)),
        type(told.value)(*told.value.problems),
    ):
        assert again.problems == told.value.problems
    with pytest.raises(NotWritten, match="somewhere"), whole_folder(tmp_path / "x"):
        raise NotWritten("somewhere something could not be written")
