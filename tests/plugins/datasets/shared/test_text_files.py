"""Files of text and of JSON: what is not UTF-8, and characters of which half is gone, are named with their line."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared import text_files
from ecoflap.plugins.datasets.shared.published_files import read_json
from ecoflap.plugins.datasets.shared.text_files import json_lines, read_text, refuse_halves

HALVES = st.characters(categories=["Cs"])
TEXTS = st.text(st.one_of(st.characters(), HALVES, st.sampled_from('\\"\nud83')), max_size=12)


@given(TEXTS, TEXTS)
def test_what_utf8_cannot_write_is_refused_and_nothing_else(key, value):
    """Python's own encoder says which text is one of whole characters, as soon as JSON has put its halves together."""
    written = json.dumps({key: [value]})
    try:
        "".join(*json.loads(written).values()).encode()
        "".join(json.loads(written)).encode()
    except UnicodeEncodeError:
        with pytest.raises(
            DataError, match=r"^here:7 holds \\ud[89a-f][0-9a-f]{2}, half of a character, as of an emoji"
        ):
            refuse_halves(written, Path("here"), 7)
    else:
        refuse_halves(written, Path("here"), 7)


@pytest.mark.parametrize(
    "half", [r"\ud83d", r"\uDE00", r"\ude00\ud83d", r"\\\ud83d", r"\ud83d\\ude00", r"\\ud83d\ude00"]
)
def test_half_a_character_is_named_with_its_line(half, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "so ' + half + '"}\n')
    with pytest.raises(
        DataError, match=r"a\.jsonl:3 holds \\u.{4}, half of a character, .* Write all of it, or leave it"
    ):
        list(json_lines(tmp_path / "a.jsonl"))
    (tmp_path / "a.json").write_text('[{"text": "a"},\n{"text": "so ' + half + '"}]')
    with pytest.raises(DataError, match=r"a\.json:2 holds \\u.{4}, half of a character"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "whole", [r"\ud83d\ude00", r"\uD83D\uDE00", r"\\ud83d", r"\\ude00", r"\u00e9", r"\ud7ff\ue000"]
)
def test_whole_characters_and_what_only_looks_like_half_of_one_are_read(whole, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{whole}"}}')
    ((number, row),) = json_lines(tmp_path / "a.jsonl")
    assert (number, row) == (1, json.loads(f'{{"text": "{whole}"}}'))
    row["text"].encode()


def test_what_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("a\né\n".encode() + b"caf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt:3 cannot be read as UTF-8 text: .*0xe9"):
        read_text(tmp_path / "a.txt")


def test_no_more_room_is_asked_for_than_a_file_takes(tmp_path):
    """Under a limit of memory no text at all could be read, for room was made at once for the largest there may be."""
    (tmp_path / "text.txt").write_text("a text\n" * 300, "utf-8")
    tracemalloc.start()
    try:
        assert len(read_text(tmp_path / "text.txt")) == 2100
        assert tracemalloc.get_traced_memory()[1] < 3 * text_files._PIECE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_a_text_of_many_pieces_is_read_whole_and_one_too_large_is_refused(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(text_files, "_PIECE", 7)
    monkeypatch.setattr(text_files, "LARGEST", 100)
    file = tmp_path / f"text.{ending}"
    for text in ("é" * 50, "é" * 51):
        raw = text.encode()
        file.write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
        if len(raw) > 100:
            with pytest.raises(DataError, match="holds more than 100 bytes of text"):
                read_text(file)
        else:
            assert read_text(file) == text


@pytest.mark.parametrize(("line", "said"), [
    ('[{"text": "a"}]', r":2 is not a JSON object, but a list: put each object on a line of its own"),
    ('{"text": "a", "text": "b"}', r":2 has 'text' more than once, and the last would be taken"),
    ('{"text": "a", "more": {"b": 1, "b": 2}}', r":2 has 'b' more than once"),
])  # fmt: skip
def test_lines_that_mean_no_one_row_are_refused(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "12:30: {{}}"}}\n{line}\n')
    with pytest.raises(DataError, match=said):
        list(json_lines(tmp_path / "a.jsonl"))
