"""Whether files that were hashed are others now, also where somebody has put back the time they were written at."""

import os
import shutil
from hashlib import sha256

import pytest

from ecoflap.core.model import hashed_files
from ecoflap.core.model.hashed_files import HashedFiles


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of a model")
    return path


@pytest.fixture
def known(file):
    """Files that were hashed, and have not changed."""
    files = HashedFiles([file])
    files.know({file: sha256(file.read_bytes()).hexdigest()})
    assert files.changed() == []
    return files


def at_its_old_time(file, do):
    """Do something to a file, and put back when it was written."""
    before = file.stat()
    do()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def copied_over(file, contents):
    other = file.with_name("other")
    other.write_bytes(contents)
    other.replace(file)


@pytest.mark.parametrize("how", [lambda file, other: file.write_bytes(other), copied_over])
def test_other_contents_of_the_same_length_and_time_are_found(known, file, how):
    at_its_old_time(file, lambda: how(file, b"WEIGHTS of a model"))
    assert known.changed() == [file]
    assert known.is_changed(file)


@pytest.mark.parametrize("how", ["rights", "name", "link", "copy"])
def test_the_same_contents_are_no_change_and_are_hashed_once(known, file, how, monkeypatch):
    hashed = []

    def noted(path):
        hashed.append(path)
        return sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(hashed_files, "sha256_of", noted)
    if how == "rights":
        file.chmod(0o600)
    elif how == "name":
        file.rename(file.with_name("away")).rename(file)
    elif how == "link":
        os.link(file, file.with_name("link"))
    else:
        at_its_old_time(file, lambda: copied_over(file, file.read_bytes()))
    assert known.changed() == known.changed() == []
    assert hashed == [file]


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: os.utime(file, ns=(0, 0))])
def test_what_is_gone_or_was_written_to_is_another(known, file, change):
    change(file)
    assert known.changed() == [file]


def test_without_a_digest_length_and_time_tell(file):
    files = HashedFiles([file])
    file.chmod(0o600)
    assert files.changed() == []
    file.write_bytes(b"longer weights of a model")
    assert files.changed() == [file]


def test_a_file_is_the_same_by_another_path_to_it(known, file, tmp_path):
    folder = tmp_path / "linked"
    folder.symlink_to(tmp_path)
    assert folder / file.name in known
    assert tmp_path / "config.json" not in known
    at_its_old_time(file, lambda: shutil.copyfile(__file__, file) and os.truncate(file, 18))
    assert known.is_changed(folder / file.name)


@pytest.mark.parametrize("of", ["file", "folder"])
@pytest.mark.parametrize("is_another", [True, False])
def test_a_link_that_leads_elsewhere_since_is_a_change_of_contents_alone(file, tmp_path, of, is_another):
    """The new file is as long and as old as the one that was hashed."""
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    for folder in (first, second):
        folder.mkdir()
        shutil.copyfile(file, folder / file.name)
        os.utime(folder / file.name, ns=(0, 0))
    if is_another:
        at_its_old_time(second / file.name, lambda: (second / file.name).write_bytes(b"WEIGHTS of a model"))
    link.symlink_to(first if of == "folder" else first / file.name)
    linked = link / file.name if of == "folder" else link
    known = HashedFiles([linked])
    known.know({linked: sha256(linked.read_bytes()).hexdigest()})
    link.unlink()
    link.symlink_to(second if of == "folder" else second / file.name)
    assert linked in known
    assert known.changed() == ([linked] if is_another else [])
    assert known.is_changed(linked) is is_another
