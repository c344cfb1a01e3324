"""Lines that carry seals: whatever is done to a line but the last shows, with its number; a torn last line does not."""

import json
import os
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import RunError
from ecoflap.core.sealing import sealed_lines
from ecoflap.core.sealing.sealed_lines import append_line, has_seal, last_seal, read_lines


def by_hand(*bodies):
    """Lines with the seals that docs/run.md describes: each over the seal before it, a line feed, and its own text."""
    raw, seal = b"", ""
    for body in bodies:
        text = body[:-1] if isinstance(body, bytes) else json.dumps(body).encode()[:-1]
        seal = sha256(seal.encode() + b"\n" + text).hexdigest()
        raw += text + b', "seal": "' + seal.encode() + b'"}\n'
    return raw


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "scores.jsonl"


def test_lines_come_back(path):
    assert read_lines(path) == []
    assert last_seal(path) == ""
    lines = [{"layer": "é\n", "score": 0.1}, {"score": float("inf")}]
    for line in lines:
        append_line(path, line)
    assert read_lines(path) == lines
    assert has_seal(path, "")


def test_a_line_is_sealed_as_the_documentation_says(path):
    lines = [{"a": 1}, {"b": [2.5, "c"]}, {"d": None}]
    for line in lines:
        append_line(path, line)
    assert path.read_bytes() == by_hand(*lines)
    assert [json.loads(line)["seal"] for line in path.read_text().splitlines()][-1] == last_seal(path)


@given(number=st.integers(0, 2), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_of_a_line_can_turn(tmp_path_factory, number, at, bit):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [{"name": f"layer{n}", "score": n / 7, "terms": [n, 0.1]} for n in range(3)]
    raw = [line + b"\n" for line in by_hand(*lines).splitlines()]
    turned = bytearray(raw[number])
    turned[at % len(turned)] ^= 1 << bit
    path.write_bytes(b"".join([*raw[:number], bytes(turned), *raw[number + 1 :]]))
    if number == 2 and turned[-1:] != b"\n" and at % len(turned) == len(turned) - 1:
        assert read_lines(path) == lines[:2]  # a line without its end is one that was not written
        return
    with pytest.raises(RunError, match=rf"a\.jsonl:{number + 1}: this line "):
        read_lines(path)


EDITS = {
    "removed": (lambda lines: [lines[0], *lines[2:]], 2),
    "doubled": (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
    "exchanged": (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
    "added": (lambda lines: [*lines, b'{"score": 9.0}'], 5),
    "of another file": (lambda lines: [*lines, by_hand({"score": 9.0}).splitlines()[0]], 5),
    "blank": (lambda lines: [lines[0], b"", *lines[1:]], 2),
    "without its seal": (lambda lines: [lines[0][: lines[0].index(b', "seal"')] + b"}", *lines[1:]], 1),
    "with a space behind": (lambda lines: [lines[0] + b" ", *lines[1:]], 1),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_a_hand_does_is_told_with_its_line(path, what):
    edit, line = EDITS[what]
    path.parent.mkdir()
    path.write_bytes(b"\n".join([*edit(by_hand(*({"score": n} for n in range(4))).splitlines()), b""]))
    with pytest.raises(RunError, match=rf"scores\.jsonl:{line}: this line .*Restore the file, or delete it\."):
        read_lines(path)


def test_lines_that_are_gone_show_by_the_last_seal(path):
    for number in range(3):
        append_line(path, {"score": number})
    known = last_seal(path)
    append_line(path, {"score": 3})
    assert has_seal(path, known)
    path.write_bytes(b"\n".join([*path.read_bytes().splitlines()[:2], b""]))
    assert len(read_lines(path)) == 2
    assert not has_seal(path, known)


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_torn_last_line_is_cut_off_and_appending_goes_on(path, kept):
    append_line(path, {"a": 1})
    torn = path.read_bytes() + b'{"bb": "c"}\n'[:kept]
    path.write_bytes(torn)
    assert read_lines(path) == [{"a": 1}]
    assert path.read_bytes() == torn, "reading changes nothing"
    append_line(path, {"d": 2})
    assert read_lines(path) == [{"a": 1}, {"d": 2}]


@pytest.mark.parametrize(("line", "told"), [(b'{"b"}', "not JSON"), (b"{[1]}", "not JSON"), (b"{\xff}", "not JSON")])
def test_a_sealed_line_may_still_be_wrong(path, line, told):
    path.parent.mkdir()
    path.write_bytes(by_hand({"a": 1}, line, {"c": 2}))
    with pytest.raises(RunError, match=rf"scores\.jsonl:2: this is {told}"):
        read_lines(path)


@pytest.mark.parametrize(
    ("line", "told"), [({"b": 1}, "this line has no a"), ({"a": "1"}, "the a of this line is no int")]
)
def test_a_line_without_what_it_must_hold_is_an_error_with_its_number(path, line, told):
    path.parent.mkdir()
    path.write_bytes(by_hand({"a": 1}, line))
    assert len(read_lines(path)) == 2
    with pytest.raises(RunError, match=rf"scores\.jsonl:2: {told}\. Restore the file"):
        read_lines(path, {"a": int})


def test_nothing_is_added_behind_a_line_without_a_seal(path):
    path.parent.mkdir()
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(RunError, match=r"its last line has no seal at its end"):
        append_line(path, {"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_line_that_does_not_fit_is_taken_back(path, monkeypatch):
    append_line(path, {"a": 1})
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(sealed_lines.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(RunError, match="disk is full"):
        append_line(path, {"b": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize("to", ["nowhere", "a.jsonl"])
def test_a_link_that_leads_nowhere_is_no_file_without_lines(tmp_path, to):
    (tmp_path / "a.jsonl").symlink_to(to)
    for read in (read_lines, last_seal):
        with pytest.raises(RunError, match=r"a\.jsonl cannot be read: .*link.*\. Restore the file, or delete it\."):
            read(tmp_path / "a.jsonl")


def test_what_is_no_file_is_refused_with_a_cure(tmp_path, pipe):
    for path, why in ((tmp_path, "Is a directory"), (pipe, "it is no file, but a pipe")):
        with pytest.raises(RunError, match=rf"{path.name} cannot be read: {why}.*\. Restore the file, or delete it\."):
            read_lines(path)
    with pytest.raises(RunError, match="pipe could not be written: it is no file"):
        append_line(pipe, {"a": 1})
