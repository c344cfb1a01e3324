"""What is no regular file is not waited on, and what cannot be read is told with its name, the reason and a cure."""

import errno
import os

import pytest

from ecoflap.core.disk.reading import file_of, open_file, refused, unread, what_to_mend
from ecoflap.core.errors import EcoflapError


def test_a_file_is_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"abc"


def test_nothing_else_is(tmp_path, pipe):
    for path, number in ((tmp_path, errno.EISDIR), (pipe, errno.EINVAL), (tmp_path / "none", errno.ENOENT)):
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        with pytest.raises(OSError, match=path.name) as caught:
            open_file(path)
        assert (caught.value.errno, str(caught.value.filename)) == (number, str(path))
        assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def told(path):
    with pytest.raises(OSError, match=path.name) as caught:
        open_file(path)
    return unread(caught.value)


def test_why_is_said_and_what_to_do(tmp_path, unreadable):
    (tmp_path / "locked").touch()
    unreadable(tmp_path / "locked")
    (tmp_path / "nowhere").symlink_to("none")
    (tmp_path / "round").symlink_to("round")
    start = f"{tmp_path}/"
    assert told(tmp_path / "locked").startswith(f"{start}locked cannot be read: Permission denied. Change its perm")
    assert told(tmp_path / "nowhere").startswith(f"{start}nowhere cannot be read: it is a link to what is not there. ")
    assert told(tmp_path / "round").endswith(". Put what is meant in the place of the link.")


def test_an_error_without_a_name_is_of_what_was_read(tmp_path):
    broken = OSError(errno.EIO, "Input/output error")
    assert unread(broken, tmp_path / "a").startswith(f"{tmp_path}/a cannot be read: Input/output error. Check the disk")
    assert unread(OSError("odd")) == "a file cannot be read: odd. Restore it, or name another."


def test_what_nobody_has_explained(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", bytes(tmp_path / "a"))
    assert file_of(error) == tmp_path / "a"
    assert file_of(OSError(errno.ENOSPC, "No space left on device", 3)) is None
    assert refused(error, tmp_path / "a") == (
        f"{tmp_path}/a cannot be read or written: No space left on device. Put that right, then run the same command "
        f"again."
    )


def test_what_a_user_can_mend_is_explained_and_nothing_else(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    assert what_to_mend(error) == refused(error, tmp_path / "a")
    assert what_to_mend(EcoflapError("one", "other")) == "2 problems\n  one\n  other"
    assert what_to_mend(OSError(errno.EPIPE, "Broken pipe")) is None
    assert what_to_mend(ValueError("odd")) is None
