"""YAML 1.2 scalars, what is refused, and that everything knows its place."""

import math
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ecoflap.core.errors import RecipeError, RegistryError
from ecoflap.core.text.strict_yaml import LARGEST, Place, dotted, parse_yaml, read_yaml, read_yaml_file, write_yaml


def scalar(text):
    return read_yaml(f"a: {text}", "r.yaml").value["a"]


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "y", "2:4", "1:30:00", "2020-01-01", "1_000", "0b1", "=", "1e"]
)
def test_what_yaml_1_2_calls_text_is_text(text):
    assert scalar(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-.inf", -math.inf), ("0.7", 0.7),
        ("0o17", 15), ("0x1F", 31), ("017", 17), ("-3", -3), ("+3", 3),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("'1'", "1"), ('"on"', "on"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_nan():
    assert math.isnan(scalar(".nan"))


def test_every_key_and_value_has_its_place():
    document = read_yaml("a: 1\nb:\n  - c: {d: 2}\n", "folder/r.yaml")
    assert str(document.where(("a",), key=True)) == "folder/r.yaml:1:1"
    assert str(document.where(("a",))) == "folder/r.yaml:1:4"
    assert str(document.where(("b", 0, "c", "d"))) == "folder/r.yaml:3:12"
    assert document.where(("b", 0)).folder.name == "folder"


def test_what_was_not_written_is_where_its_surroundings_are():
    document = read_yaml("a: {b: 1}", "r.yaml")
    assert document.where(("a", "x", "y")) == document.where(("a",))
    assert str(document.where(("z",))) == "r.yaml:1:1"


def test_every_key_written_twice_is_told():
    with pytest.raises(RecipeError) as caught:
        read_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\n", "r.yaml")
    assert caught.value.problems == (
        "r.yaml:2:11: b.c: written twice; first at r.yaml:2:5. Remove one.",
        "r.yaml:3:1: a: written twice; first at r.yaml:1:1. Remove one.",
    )


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: [1, 2", ":1:9", "expected ',' or ']'"),
        ("a: 1\n b: 2", ":2:3", "mapping values are not allowed here"),
        ("\ta: 1", ":1:1", "cannot start any token"),
        ("a: *b", ":1:4", "undefined alias"),
        ("---\na: 1\n---\nb: 1", ":3:1", "single document"),
        ("a: !!int 3", ":1:4", "tags"),
        ("a: !mine {}", ":1:4", "tags"),
        ("a: !!python/object:os.system x", ":1:4", "tags"),
        ("? [1]\n: 2", ":1:3", "a key should be a word"),
        ("a: \x07", "", "not YAML"),
        ("", ":1:1", "empty"),
        ("# nothing\n", ":1:1", "empty"),
        ("- a", ":1:1", "a mapping is wanted at the top"),
        ("word", ":1:1", "'word'"),
        ("a: " + "9" * 5000, ":1:4", "digits"),
    ],
)
def test_what_is_refused_says_where_and_what(text, place, word):
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r.yaml")
    assert str(caught.value).startswith(f"r.yaml{place}")
    assert word in str(caught.value)


def test_anchors_are_allowed():
    assert read_yaml("a: &x {b: 1}\nc: *x", "r.yaml").value == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1}\nc: {<<: *x}",
        "a: &x {b: 1, c: 2}\nd: {c: 3, <<: *x}",
        "a: &x {b: 1, c: 2}\nd: {<<: *x, c: {e: 3}}",
        "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne: {<<: [*x, *y]}\nf: {<<: [*y, *x], g: 4}",
        "a: &x {b: 1}\nc: &y {<<: *x, d: 2}\ne: {<<: *y, b: 3}",
        "a: &x {b: 1}\nc: {<<: [*x, {d: 2}]}",
        "a: &x {b: {c: 1}}\nd: [{<<: *x}, {<<: *x, b: null}]",
        "a: {'<<': {b: 1}}",
    ],
)
def test_what_is_merged_is_what_yaml_itself_merges(text):
    assert read_yaml(text, "r.yaml").value == yaml.safe_load(text)


def test_what_is_merged_has_the_place_of_the_anchor_and_nothing_else_is_merged():
    document = read_yaml("a: &x\n  b: 1\nc: {<<: *x, d: 2}", "r.yaml")
    assert str(document.where(("c", "b"))) == "r.yaml:2:6"
    with pytest.raises(RecipeError, match=r"r\.yaml:2:5: << merges a mapping, or a list of some"):
        read_yaml("a: &x [1]\nc: {<<: [*x]}", "r.yaml")
    with pytest.raises(RecipeError, match=r"r\.yaml:2:13: << is written twice; merge a list"):
        read_yaml("a: &x {d: 1}\nc: {<<: *x, <<: {e: 2}}", "r.yaml")
    with pytest.raises(RecipeError, match=r"r\.yaml:2:11: c\.d: written twice"):
        read_yaml("a: &x {d: 1}\nc: {d: 2, d: 3, <<: *x}", "r.yaml")


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: " + "[" * 500, "a: &x {b: *x}", "a: &x {<<: *x}"])
def test_endless_depth_is_refused(text):
    with pytest.raises(RecipeError, match="nested too deeply"):
        read_yaml(text, "r.yaml")


def test_where_an_alias_contains_itself_is_said():
    with pytest.raises(RecipeError, match=r"^r\.yaml:2:4: nested too deeply; does an alias contain itself"):
        read_yaml("v: 1\na: &x {<<: *x}", "r.yaml")


def test_aliases_that_multiply_are_refused_quickly():
    lines = ["a0: &a0 [" + ",".join("1" * 10) + "]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)]
    with pytest.raises(RecipeError, match="do aliases repeat each other"):
        read_yaml("\n".join(lines), "r.yaml")


def test_merges_that_multiply_are_refused_quickly():
    lines = ["a0: &a0 {b: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [" + ",".join([f"*a{i - 1}"] * 10) + "]}" for i in range(1, 12)]
    with pytest.raises(RecipeError, match="do aliases repeat each other"):
        read_yaml("\n".join(lines), "r.yaml")


def test_the_error_is_the_callers():
    with pytest.raises(RegistryError):
        read_yaml("a: [", "registry.yaml", RegistryError)


def test_parse_takes_any_value():
    document, problems = parse_yaml("[a, 2:4]", Place("--set x"))
    assert (document.value, problems) == (["a", "2:4"], [])
    assert str(document.where((1,))) == "--set x"
    assert dotted(("evaluate", 0, "samples")) == "evaluate.0.samples"


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
words = st.sampled_from(
    ["on", "2:4", "1e-3", "null", "~", "0x1F", "", ".inf", "1_000", "=", "<<", "- a", "a: b", "!x", "*y"]
)
values = st.recursive(
    scalars | words, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | words, inner, max_size=4)
)


@given(st.dictionaries(st.text() | words, values, max_size=5))
def test_what_is_written_reads_back_equal(value):
    assert read_yaml(write_yaml(value), "r.yaml").value == value


@pytest.mark.parametrize("size", [10_000_000, LARGEST + 1])
def test_a_file_that_nobody_wrote_by_hand_is_refused_before_it_is_parsed(size, tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("k: 1\n#" + "x" * size)
    monkeypatch.setattr(yaml, "compose", None)  # which would be called to parse it
    for read in (read_yaml_file, lambda file: read_yaml(file.read_text(), file)):
        with pytest.raises(RecipeError, match=r"a\.yaml.* it is larger than 500,000 bytes"):
            read(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("".join(f"k{n}: 1\n" for n in range(45_000)), "20000:9: more than 20000 values"),
        ("a: &a [1]\nb: [" + "*a," * 60_000 + "]", "more than 20000 values"),
        ("[" * 100_000, "1:62: nested too deeply"),
        ("- " * 100_000, "1:123: nested too deeply"),
        ("? " * 100_000, "1:123: nested too deeply"),
        ("{a: " * 100_000, "nested too deeply"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{two}: &{two} [{', '.join(['*' + one] * 9)}]\n" for one, two in pairwise("abcdefghi")),
            "more than 20000 values; do aliases repeat each other?",
        ),
        ("a: " + "9" * 1_001, "has more digits than can be read"),
        ("a: 0x" + "f" * 100_000, "has more digits than can be read"),
        ("a: 0o" + "7" * 100_000, "has more digits than can be read"),
    ],
    ids=range(10),
)
def test_what_would_fill_the_memory_is_refused_early(text, told):
    _, problems = parse_yaml(text, Place("a.yaml", 1, 1))
    assert told in problems[0]


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(RecipeError, match=rf"{name} cannot be read: "):
            read_yaml_file(tmp_path / name)
