"""Drawings: well-formed, the same each time, at the numbers they are given; no state of matplotlib's is left."""

import re
from xml.etree import ElementTree

import pytest

from ecoflap.core.report.charts import (
    Line,
    Panel,
    Strip,
    by_block,
    by_method,
    by_sparsity,
    shortened,
    stacked,
)
from ecoflap.core.report.drawings import obstacle
from ecoflap.core.text.numbers import mean

pytestmark = pytest.mark.skipif(obstacle() is not None, reason="needs matplotlib")


def line(label="wanda", factor=1.0):
    return Line.over(label, {0.5: [5 * factor, 6 * factor, 7 * factor], 0.7: [8 * factor, 8 * factor, 11 * factor]})


def panels(*towers):
    return [Panel(name, [Line.counted("a", [[0.1 * i + 0.1] for i in range(count)])]) for name, count in towers]


DRAWINGS = {
    "by_sparsity": lambda name="x": by_sparsity(name, "perplexity", [line(), line("b", 2.0)], [4.5]),
    "by_method": lambda name="x": by_method(name, "accuracy", [Line.over("a", {0.5: [0.2, 0.4]})], [0.9]),
    "by_block": lambda name="x": by_block(name, [Strip("pruned in %", "block", panels(("v", 4), ("l", 9)), True)]),
    "stacked": lambda name="x": stacked(name, "minutes", {"a": {"load": 1.0, "prune": 2.0}, "b": {"load": 0.5}}),
}


def texts(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter("text")]


def curve(svg):
    """The points of the first line; the legend's come after those that are drawn."""
    paths = (node for node in ElementTree.fromstring(svg).iter("path") if "stroke-width: 1.6" in node.get("style", ""))
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", next(paths).get("d"))]


def test_a_line_is_the_mean_between_the_smallest_and_the_largest():
    found = line()
    assert (found.x, found.mean, found.low, found.high) == ([0.5, 0.7], [6.0, 9.0], [5.0, 8.0], [7.0, 11.0])
    assert found.has_spread
    assert not Line.over("a", {0.5: [0.1, 0.1, 0.1]}).has_spread
    assert mean([0.1] * 3) == 0.1


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_drawing_is_whole_needs_nothing_and_is_the_same_again(draw):
    svg = draw()
    ElementTree.fromstring(svg)
    assert svg.startswith("<svg ")
    assert "://" not in svg
    assert "#123456" not in svg
    assert "currentColor" in svg
    assert svg == draw()


def test_names_inside_are_apart_and_all_of_them_are_used():
    for draw in DRAWINGS.values():
        one, other = draw("one"), draw("other")
        names = re.findall(r' id="([^"]+)"', one)
        assert len(names) == len(set(names)) > 0
        assert all(name.startswith("one-") for name in names)
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', one)) == set(names)
        assert not set(names) & set(re.findall(r' id="([^"]+)"', other))


def test_higher_is_drawn_higher_and_sparser_further_right():
    left, right = curve(by_sparsity("x", "perplexity", [Line.over("a", {0.5: [5.0], 0.7: [9.0]})], []))
    assert left[0] < right[0]
    assert left[1] > right[1]  # y counts from the top


def test_the_axis_is_logarithmic_from_a_factor_of_ten_on():
    """Three values with equal ratios are equally far apart then, and only then."""
    for top, is_logarithmic in ((64.0, False), (512.0, True)):
        middle = (8 * top) ** 0.5
        a, b, c = curve(by_sparsity("x", "p", [Line.over("a", {0.3: [8.0], 0.5: [middle], 0.7: [top]})], []))
        assert (abs((a[1] - b[1]) - (b[1] - c[1])) < 0.01) is is_logarithmic


def test_a_value_that_is_not_positive_keeps_the_axis_linear():
    a, b, c = curve(by_sparsity("x", "p", [Line.over("a", {0.3: [0.0], 0.5: [50.0], 0.7: [100.0]})], []))
    assert abs((a[1] - b[1]) - (b[1] - c[1])) < 0.01


def test_each_label_is_there_once_and_as_it_is_written():
    labels = ["$x_1$ & <b>", "wanda → x", *(f"method {i}" for i in range(11))]
    found = texts(by_sparsity("x", "perplexity (smaller is better)", [line(label) for label in labels], [4.0, 4.5]))
    for label in (*labels, "dense", "perplexity (smaller is better)", "weights pruned in %", "50", "70"):
        assert found.count(label) == 1


def test_towers_are_panels_with_whole_blocks():
    found = texts(DRAWINGS["by_block"]())
    assert {"v", "l", "pruned in %", "block"} <= set(found)
    assert not [text for text in found if re.fullmatch(r"\d+\.\d+", text or "")]


def test_a_block_alone_is_seen():
    svg = by_block("x", [Strip("score", "tower", panels(("v", 1)))])
    assert re.search(r"<use [^>]*fill: #3b82c4", svg)


def test_a_label_longer_than_its_room_is_cut():
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcd", 4) == "abcd"
    assert "m" * 39 + "…" in texts(stacked("x", "s", {"m" * 200: {"a": 1.0}}))


def test_nothing_of_matplotlibs_settings_is_left_changed():
    import matplotlib

    before = dict(matplotlib.rcParams)
    DRAWINGS["stacked"]()
    assert dict(matplotlib.rcParams) == before
