"""JSON files are mappings within limits, or are refused with their name."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.disk.json_files import doubled_keys, json_value, read_bytes, read_json
from ecoflap.core.errors import RunError
from ecoflap.core.sealing.sealed_lines import read_lines


def test_a_mapping_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1]}', "utf-8")
    assert read_json(tmp_path / "a.json") == {"ä": [1]}


def test_keys_that_are_there_twice_are_found_at_any_depth():
    text = '{"a": 1, "b": {"c": 1, "c": 2}, "a": [{"d": 1, "d": 1}], "e": {"f": 1}, "f": 1' + "0" * 5000 + "}"
    assert sorted(doubled_keys(text)) == ["a", "c", "d"]
    assert doubled_keys("[1]") == []


@pytest.mark.parametrize(
    ("content", "what"),
    [("[1]", "expected a mapping"), ("{", "cannot be read: EOF while"), (None, "cannot be read: .*No such file")],
)
def test_anything_else_is_refused_with_the_file(content, what, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=rf"a\.json: {what}"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 300 + "]" * 300, "1" * 5_000])
def test_what_would_exhaust_python_is_no_json(text, tmp_path):
    with pytest.raises(ValueError, match=r"recursion limit exceeded|out of range"):
        json_value(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match=r"a\.json: cannot be read: "):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"measures":' * 100_000])
def test_nor_is_a_line_of_a_run(text, tmp_path):
    (tmp_path / "a.jsonl").write_text(text + "\n")
    with pytest.raises(RunError, match=r"a\.jsonl:1: this line "):
        read_lines(tmp_path / "a.jsonl")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.text(), inner)
), max_leaves=20))  # fmt: skip
def test_what_a_run_writes_reads_back(value):
    text = json.dumps(value)
    assert json.dumps(json_value(text)) == text


def test_no_more_is_read_than_is_meant(tmp_path):
    (tmp_path / "a.json").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "a.json", 11) == b"x" * 11
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_bytes(tmp_path / "a.json", 10)


def test_a_pipe_is_not_waited_on(pipe):
    with pytest.raises(RunError, match=r"pipe: cannot be read: .*it is no file, but a pipe"):
        read_json(pipe)


def test_a_small_file_takes_little_memory(tmp_path):
    """And not as much as the largest may take, which a limit of memory would refuse."""
    (tmp_path / "small.json").write_text("{}")
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "small.json") == b"{}"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
