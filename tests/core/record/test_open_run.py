"""How a run folder is opened: begun, taken up, emptied, refused, and locked for one process."""

import errno
import os
import re
from pathlib import Path

import pytest

from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.open_run import is_held, open_run, require_finished


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_a_new_folder_is_made_and_a_begun_one_taken_up(tmp_path):
    path = tmp_path / "a" / "b"
    with open_run(path, fresh=False) as folder:
        assert not folder.is_ours
        folder.recipe.write_text("version: 1")
    with open_run(path, fresh=False) as folder:
        assert folder.is_ours


def test_a_folder_that_is_a_link_to_nothing_is_refused_as_that(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    told = r"run is a link to what is not there\. Make that folder, or name another"
    with pytest.raises(RunError, match=told), open_run(tmp_path / "run", fresh=False):
        raise AssertionError("it was opened")
    assert not (tmp_path / "nowhere").exists()


def test_what_cannot_be_written_in_the_folder_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    told = r"cannot be written: \.lock in it: Is a directory\. Name another folder"
    with pytest.raises(RunError, match=told), open_run(tmp_path, fresh=False):
        raise AssertionError("it was opened")


def test_half_written_files_are_gone_when_it_is_taken_up(tmp_path):
    with open_run(tmp_path / "run", fresh=False) as folder:
        folder.recipe.write_text("version: 1")
        folder.blocks.mkdir()
        (folder.blocks / ".000.safetensors.partial").write_text("half")
    with open_run(tmp_path / "run", fresh=False) as folder:
        assert list(folder.blocks.iterdir()) == []


def test_fresh_deletes_all_but_the_lock(tmp_path):
    with open_run(tmp_path / "run", fresh=False) as folder:
        for path in (folder.recipe, folder.fingerprints, folder.scores, folder.model / "deep" / "file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    with open_run(tmp_path / "run", fresh=True) as folder:
        assert [path.name for path in folder.path.iterdir()] == [".lock"]


def test_fresh_names_what_could_not_be_deleted_by_its_whole_path(tmp_path, monkeypatch):
    with open_run(tmp_path / "run", fresh=False) as folder:
        folder.recipe.write_text("version: 1")
        (folder.model / "inside").mkdir(parents=True)
        (folder.model / "inside" / "a").touch()
    unlink = os.unlink

    def refused(path, *arguments, **keys):
        if str(path).endswith("a"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), "a")
        return unlink(path, *arguments, **keys)

    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises((OSError, RunError), match=re.escape(str(folder.model))), open_run(folder.path, fresh=True):
        pass


def test_fresh_that_is_cut_off_leaves_whose_it_was(tmp_path, monkeypatch):
    with open_run(tmp_path / "run", fresh=False) as folder:
        for path in (folder.recipe, folder.fingerprints, folder.scores, folder.plan):
            path.write_text("x")
    monkeypatch.setattr("pathlib.Path.unlink", _cut_off)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", fresh=True):
        pass
    assert folder.recipe.exists()
    assert folder.fingerprints.exists()


def _cut_off(path, missing_ok=False):
    raise KeyboardInterrupt


def test_an_error_inside_is_not_taken_for_a_held_lock(tmp_path):
    with pytest.raises(BlockingIOError), open_run(tmp_path / "run", fresh=False):
        raise BlockingIOError("a pipe of the model's own")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_that_cannot_lock_is_refused(tmp_path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    told = rf"run/\.lock cannot be locked: {os.strerror(number)}\. Name a folder on another disk"
    with pytest.raises(RunError, match=told), open_run(tmp_path / "run", fresh=False):
        pass


def test_the_lock_stays_when_it_is_given_back(tmp_path):
    for _ in range(2):
        with open_run(tmp_path / "run", fresh=False) as folder:
            held = os.stat(folder.lock).st_ino
            with pytest.raises(RunError, match="another process is running"), open_run(tmp_path / "run", fresh=True):
                pass
        assert os.stat(folder.lock).st_ino == held


def test_a_lock_is_held_as_long_as_a_run_is_open(tmp_path, monkeypatch):
    assert not is_held(tmp_path / "run" / ".lock")
    with open_run(tmp_path / "run", fresh=False) as folder:
        assert is_held(folder.lock)
        assert is_held(folder.lock)  # asking does not take it
    assert not is_held(folder.lock)
    with open_run(tmp_path / "run", fresh=False):
        monkeypatch.setattr("fcntl.flock", lambda *_: os.close(-1))  # as on a disk without locks
        assert not is_held(folder.lock)


@pytest.mark.parametrize("inside", ["model", "exports/new", "blocks/a/b", "rounds/1", "dense", "scores/x"])
def test_no_run_is_begun_inside_what_belongs_to_another(tmp_path, inside):
    with open_run(tmp_path / "run", fresh=False) as folder:
        folder.recipe.write_text("version: 1")
    told = rf"run/{inside} is inside {inside.split('/')[0]}/ of the run in .*run, whose files are its own\. Name"
    for fresh in (False, True):
        with pytest.raises(RunError, match=told), open_run(folder.path / inside, fresh=fresh):
            pass
    assert sorted(entry.name for entry in folder.path.iterdir()) == [".lock", "recipe.yaml"]


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_made(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    told = r"caf\\udce9/run' is not UTF-8, .* take no other path\. Rename the folder, or name"
    with pytest.raises(RunError, match=told), open_run(path / "run", fresh=False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("refused", [None, errno.EACCES, errno.EROFS])
def test_a_lock_is_asked_for_also_where_it_may_only_be_read(tmp_path, monkeypatch, refused):
    real = os.open

    def opened(path, flags, *mode):
        if refused is not None and flags & os.O_RDWR:
            raise OSError(refused, os.strerror(refused), path)
        return real(path, flags, *mode)

    with open_run(tmp_path / "run", fresh=False) as folder:
        monkeypatch.setattr(os, "open", opened)
        assert is_held(folder.lock)
    assert not is_held(folder.lock)


def test_a_run_is_begun_beside_the_folders_of_another_and_below_what_is_no_runs(tmp_path):
    with open_run(tmp_path / "run", fresh=False) as folder:
        folder.recipe.write_text("version: 1")
    for path in (folder.path / "mine" / "model", tmp_path / "model" / "exports"):
        with open_run(path, fresh=False) as begun:
            assert begun.lock.exists()


def test_only_a_finished_run_is_compared(folder):
    with pytest.raises(RunError, match=r"no run folder: it has no recipe\.yaml"):
        require_finished(folder.path)
    folder.recipe.write_text("version: 1")
    with pytest.raises(RunError, match=r"not finished: it has no report\.json"):
        require_finished(folder.path)
    folder.report.write_text("{}")
    assert require_finished(folder.path) == folder


def refused(path, *files):
    """Open a run that writes some files and is then refused."""
    with pytest.raises(RunError, match="refused"), open_run(path, fresh=False) as folder:
        _write_and_raise(folder, files, RunError("refused"))


def _write_and_raise(folder, files, error):
    for name in files:
        (folder.path / name).write_text("x")
    raise error


BEGUN = ("recipe.yaml", "fingerprints.json", "log.jsonl", "stages.jsonl", "warnings.jsonl")


def test_a_run_that_is_refused_before_it_found_anything_leaves_no_folder(tmp_path):
    refused(tmp_path / "runs" / "first", *BEGUN)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "other").mkdir(parents=True)
    refused(tmp_path / "runs" / "first", *BEGUN)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


@pytest.mark.parametrize("found", ["scores.jsonl", "evaluations.jsonl", "plan.json"])
def test_what_was_found_stays(tmp_path, found):
    refused(tmp_path / "run", *BEGUN, found)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", *BEGUN, found}


def test_nothing_is_deleted_that_was_there_before(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitignore").write_text("*")
    refused(tmp_path / "empty", *BEGUN)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == [".gitignore"]
    with open_run(tmp_path / "begun", fresh=False) as folder:
        folder.recipe.write_text("version: 1")
    refused(tmp_path / "begun", *BEGUN)
    assert {path.name for path in (tmp_path / "begun").iterdir()} == {".lock", *BEGUN}


def test_a_run_that_is_interrupted_or_cut_off_leaves_its_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", fresh=False) as folder:
        _write_and_raise(folder, ["recipe.yaml"], KeyboardInterrupt())
    assert folder.recipe.exists()


def test_a_folder_that_another_run_works_in_is_left_to_it(tmp_path):
    with open_run(tmp_path / "run", fresh=False) as folder:
        with pytest.raises(RunError, match="another process"), open_run(folder.path, fresh=False):
            pass
        assert folder.lock.exists()


def test_a_folder_that_is_deleted_while_it_is_opened_is_no_run(tmp_path, monkeypatch):
    from ecoflap.core.record import open_run as module

    take = module.lock_descriptor

    def late(lock, *, blocking):
        (tmp_path / "run" / ".lock").unlink()
        return take(lock, blocking=blocking)

    monkeypatch.setattr(module, "lock_descriptor", late)
    with pytest.raises(RunError, match="was deleted while it was opened"), open_run(tmp_path / "run", fresh=False):
        pass
