"""Texts that end with a seal: whatever is done to one shows, with the first line that differs."""

import json
from hashlib import sha256

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.sealing.sealed_text import read_sealed_json, read_sealed_text, write_sealed_json, write_sealed_text

CONTENT = {"version": 1, "layers": {"a": {"size": 8, "keep": 4}, "b": {"size": 6, "keep": 3}}, "name": "é"}


@pytest.fixture
def path(tmp_path):
    write_sealed_json(tmp_path / "plan.json", CONTENT)
    return tmp_path / "plan.json"


def test_it_is_sealed_as_the_documentation_says(path):
    """SHA-256 of all before the comma, a dash, and the first two bytes of the SHA-256 of each of its lines."""
    body = json.dumps(CONTENT, indent=1)[: -len("\n}")].encode()
    lines = "".join(sha256(line).hexdigest()[:4] for line in body.split(b"\n"))
    assert path.read_bytes() == body + f',\n "seal": "{sha256(body).hexdigest()}-{lines}"\n}}\n'.encode()


def test_any_program_reads_it(path, tmp_path):
    assert {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"} == CONTENT
    assert read_sealed_json(path, "Mend it.") == CONTENT
    write_sealed_text(tmp_path / "recipe.yaml", "a: 1\nb: [2]\n")
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text()) == {"a": 1, "b": [2]}
    assert read_sealed_text(tmp_path / "recipe.yaml", "") == b"a: 1\nb: [2]\n"
    write_sealed_text(tmp_path / "report.html", "<p>\n</p>")
    assert (tmp_path / "report.html").read_text().startswith("<p>\n</p>\n<!-- seal: ")
    assert read_sealed_text(tmp_path / "report.html", "") == b"<p>\n</p>\n"


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.html"])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_can_turn(tmp_path_factory, name, at, bit):
    path = tmp_path_factory.mktemp("texts") / name
    write_sealed_text(path, json.dumps(CONTENT, indent=1))
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    with pytest.raises(RunError, match=rf"{name}:.*\. Mend it\."):
        read_sealed_text(path, "Mend it.")


EDITS = {
    "a value": (lambda lines: [line.replace('"keep": 4', '"keep": 5') for line in lines], 6),
    "a key": (lambda lines: [line.replace('"b"', '"c"') for line in lines], 8),
    "a line removed": (lambda lines: [*lines[:3], *lines[4:]], 4),
    "a line doubled": (lambda lines: [*lines[:4], lines[3], *lines[4:]], 5),
    "a line added": (lambda lines: [*lines[:2], ' "x": 1,', *lines[2:]], 3),
    "lines exchanged": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], 5),
    "behind the seal": (lambda lines: [*lines[:-2], lines[-2] + ",", ' "x": "y"', lines[-1]], 14),
    "the seal's own": (lambda lines: [*lines[:-2], lines[-2][:-5] + '0000"', lines[-1]], 14),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_a_hand_does_is_told_with_its_line(path, what):
    edit, line = EDITS[what]
    lines = path.read_text().splitlines()
    assert lines[12] == ' "name": "\\u00e9",'
    path.write_text("\n".join([*edit(lines), ""]))
    with pytest.raises(FormatError, match=rf"plan\.json:{line}: this line .*\. Mend it\."):
        read_sealed_text(path, "Mend it.", FormatError)


def test_one_without_a_seal_is_refused(path):
    path.write_text(json.dumps(CONTENT, indent=1))
    with pytest.raises(RunError, match=r"its last line should hold a seal, and does not: .* before there were seals"):
        read_sealed_json(path, "Mend it.")


@pytest.mark.parametrize("content", ["[1]", "7", '{"a"\n}'])
def test_a_seal_alone_does_not_make_it_a_mapping(tmp_path, content):
    write_sealed_text(tmp_path / "a.json", content)
    with pytest.raises(RunError, match=r"a\.json: (this is not JSON: |it should hold a mapping)"):
        read_sealed_json(tmp_path / "a.json", "Mend it.")


def test_one_that_is_not_there_or_too_large(tmp_path):
    with pytest.raises(RunError, match=r"a\.json cannot be read: No such file .*\. Mend it\."):
        read_sealed_json(tmp_path / "a.json", "Mend it.")
    write_sealed_text(tmp_path / "a.yaml", "a: 1\n" * 100)
    with pytest.raises(RunError, match="larger than 50 bytes"):
        read_sealed_text(tmp_path / "a.yaml", "", most=50)
