"""The list of a folder's SHA-256: stock ``sha256sum`` reads it, and nothing can change beside it or in it."""

import os
import shutil
import subprocess
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import FormatError
from ecoflap.core.sealing.sums import check_listed, check_sums, differing, read_sums, write_sums


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "sub").mkdir()
    for name, data in (("config.json", b"{}"), ("w.safetensors", bytes(300)), ("sub/SHA256SUMS", b"x")):
        (folder / name).write_bytes(data)
    (folder / ".DS_Store").write_bytes(b"of a file manager")
    write_sums(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def test_what_it_lists(folder):
    assert dict(read_sums(folder)) == {
        name: sha256(data).hexdigest()
        for name, data in (("config.json", b"{}"), ("sub/SHA256SUMS", b"x"), ("w.safetensors", bytes(300)))
    }
    check_sums(folder, "Mend it.", required=True)


def test_a_file_whose_hash_is_known_is_not_read_again(folder):
    listed = write_sums(folder, {"config.json": "0" * 64, "sub/gone": "1" * 64})
    assert dict(read_sums(folder))["config.json"] == "0" * 64
    assert b"sub/gone" not in listed.read_bytes()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the system has no sha256sum")
def test_sha256sum_reads_it(folder):
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, check=False).returncode == 0
    (folder / "config.json").write_bytes(b"[]")
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 1


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the system has no sha256sum")
@pytest.mark.parametrize("how", ["--text", "--binary"])
def test_a_list_that_sha256sum_writes_is_read(folder, how):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in ("SHA256SUMS", ".DS_Store")]
    listed = subprocess.run(["sha256sum", how, *names], cwd=folder, check=True, capture_output=True).stdout
    (folder / "SHA256SUMS").write_bytes(listed)
    assert sorted(read_sums(folder)) == names
    assert not list(differing(folder))


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "config.json",
            b"[]",
            r"config\.json is not what was written: its SHA-256 is .*…, and SHA256SUMS .* says 44136f",
        ),
        ("config.json", None, r"config\.json is missing: SHA256SUMS lists it"),
        ("adapter_config.json", b"{}", r"adapter_config\.json was added: SHA256SUMS does not list it"),
        ("sub/more", b"", r"sub/more was added"),
    ],
)
def test_what_differs_is_told(folder, name, data, told):
    (folder / name).unlink(missing_ok=True)
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(FormatError, match=rf"{told}.*\. Mend it\."):
        check_sums(folder, "Mend it.")
    check_sums(folder, "Mend it.", only=lambda other: other != name)


def test_all_that_differs_is_told_at_once(folder):
    (folder / "config.json").unlink()
    (folder / "w.safetensors").write_bytes(b"")
    assert len(list(differing(folder))) == 2


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_of_the_list_can_turn(written, tmp_path_factory, at, bit):
    folder = shutil.copytree(written, tmp_path_factory.mktemp("turned") / "model")
    raw = bytearray((folder / "SHA256SUMS").read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    (folder / "SHA256SUMS").write_bytes(raw)
    if raw == (written / "SHA256SUMS").read_bytes()[:-1] + raw[-1:]:
        return  # the last line's end: the same list, cut off behind its last name
    assert list(differing(folder))


LINE = f"{'0' * 64}  "


ESCAPED = [f"\\{LINE}{name}" for name in ("plain", "a\\b", "a\\", "\\n\\x", "..\\n/../x", "/\\n")]


@pytest.mark.parametrize(
    "line", [*ESCAPED, *(LINE + name for name in ("../x", "/etc/x", "a/../b", "config.json")), "# x", ""]
)
def test_a_list_names_files_of_the_folder_once(folder, line):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(FormatError, match=r"SHA256SUMS:4: this line is not the SHA-256 of a file in the folder"):
        check_sums(folder, "Mend it.")


def test_a_folder_without_a_list(tmp_path):
    check_sums(tmp_path, "Mend it.")
    with pytest.raises(FormatError, match=r"SHA256SUMS cannot be read: .*No such file.*Mend it\."):
        check_sums(tmp_path, "Mend it.", required=True)


def test_what_somebody_takes_from_a_folder_is_held_to_what_the_list_knows_of_it(folder):
    def found():
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}

    (folder / "mine.json").write_text("added, as a user may")
    check_listed(folder, found)
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(
        FormatError, match=r"config\.json is not what was written: .* changed on purpose, delete SHA256"
    ):
        check_listed(folder, found)
    (folder / "SHA256SUMS").unlink()
    check_listed(folder, lambda: pytest.fail("there is no list to hold it to"))


NAMES = ("a\nb.jinja", "a\\nb.jinja", "\\", "sub/\n", "plain\r", "caf\udce9.jinja")


@pytest.fixture
def oddly_named(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode(errors="surrogateescape"))
    return write_sums(tmp_path).parent


def test_a_name_may_hold_a_line_feed_or_a_backslash(oddly_named):
    assert set(read_sums(oddly_named)) == set(NAMES)
    check_sums(oddly_named, "Mend it.", required=True)
    (oddly_named / NAMES[0]).write_bytes(b"")
    (oddly_named / NAMES[2]).unlink()
    assert [told.partition(" is ")[2][:12] for told in differing(oddly_named)] == ["missing: SHA", "not what was"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="the system has no sha256sum")
def test_sha256sum_reads_and_writes_such_names_so_too(oddly_named):
    (oddly_named / "plain\r").unlink()  # of which its versions think otherwise
    listed = write_sums(oddly_named).read_bytes()
    names = [os.fsencode(name) for name in read_sums(oddly_named)]
    assert subprocess.run(["sha256sum", *names], cwd=oddly_named, check=True, capture_output=True).stdout == listed
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=oddly_named, check=True)


def test_a_file_or_folder_that_may_not_be_read_is_told(folder, unreadable):
    unreadable(folder / "config.json")
    assert list(differing(folder)) == [
        f"{folder}/config.json cannot be read: Permission denied. Change its permissions, or ask whom it belongs to."
    ]
    unreadable(folder / "sub")
    assert [told.partition(":")[0] for told in differing(folder)] == [f"{folder}/sub cannot be read"]


def test_a_list_that_is_a_pipe_is_not_waited_on(folder, pipe):
    (folder / "SHA256SUMS").unlink()
    pipe.rename(folder / "SHA256SUMS")
    with pytest.raises(FormatError, match=r"SHA256SUMS cannot be read: it is no file, .* Mend it\."):
        check_sums(folder, "Mend it.", required=True)
