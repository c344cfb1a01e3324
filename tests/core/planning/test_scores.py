"""Scores are read back as they were written; a line that is none is told with its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed_by_hand import write_lines

from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.contracts.records import Estimate
from ecoflap.core.errors import RunError
from ecoflap.core.planning.scores import Scores, header_line, read_scores, score_line


def written(path, *lines):
    write_lines(path, lines)
    return path


OF_WEIGHTS = {"name": "a", "file": "000.safetensors", "seal_of_file": "0" * 64, "sum": 1.5}


def test_numbers_of_weights_are_read_back_by_the_file_beside_the_lines(tmp_path):
    scores = read_scores(written(tmp_path / "scores.jsonl", header_line("layer", "per_parameter"), OF_WEIGHTS))
    assert scores.values == {"a": WeightScores(tmp_path / "scores" / "000.safetensors", "0" * 64, 1.5)}
    assert (scores.kind, scores.of({"a": 3}), score_line("a", scores.values["a"])) == ("weights", 0.5, OF_WEIGHTS)


def test_scores_are_read_back_with_the_terms_of_estimates(tmp_path):
    lines = [score_line("a", 2.0), score_line("b", Estimate([1.0, 4.0])), {"name": "c", "score": 3}]
    scores = read_scores(written(tmp_path / "scores.jsonl", header_line("block", "mean"), *lines))
    assert (scores.unit, scores.aggregate) == ("block", "mean")
    assert scores.values == {"a": 2.0, "b": 2.5, "c": 3.0}
    assert scores.values["b"].terms == (1.0, 4.0)


@pytest.mark.parametrize(
    "line",
    [{"name": "a"}, {"name": 1, "score": 1.0}, {"name": "a", "score": "1"}, {"name": "a", "score": True}]
    + [{"name": "a", "score": 1.0, "terms": terms} for terms in (1.0, [], ["1"])]
    + [{"name": "a", "levels": levels, "rises": [1.0, 2.0]} for levels in (None, [0.4], [0.6, 0.4], ["0.4", 0.6])]
    + [{"name": name, "levels": [0.4, 0.6], "rises": rises} for name, rises in ((1, [1.0, 2.0]), ("a", 1.0))]
    + [OF_WEIGHTS | change for change in ({"name": 1}, {"seal_of_file": None}, {"sum": "1"}, {"sum": True})]
    + [OF_WEIGHTS | {"file": file} for file in (3, "../000.safetensors", "/etc/000.safetensors", "x.safetensors")],
)
def test_a_line_that_is_no_score_is_told_with_its_number(line, tmp_path):
    path = written(tmp_path / "scores.jsonl", header_line("layer", "sum"), score_line("a", 1.0), line)
    with pytest.raises(RunError, match=r"scores\.jsonl:3: this line is not the score of a layer or block"):
        read_scores(path)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_curves_are_read_back_bit_for_bit(tmp_path_factory, rises):
    curve = Curve((0.1, 1 / 3, 0.7), tuple(rises))
    path = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    found = read_scores(written(path, header_line("block", "sum"), score_line("a", curve)))
    assert (found.kind, found.values["a"].levels) == ("curve", curve.levels)
    assert [rise.hex() for rise in found.values["a"].rises] == [rise.hex() for rise in rises]


@pytest.mark.parametrize(("aggregate", "factor"), [("sum", 1), ("mean", 1 / 2), ("per_parameter", 1 / 8)])
def test_a_groups_curve_is_that_of_its_members(aggregate, factor):
    curves = {"a": Curve((0.4, 0.8), (1.0, 2.0)), "b": Curve((0.4, 0.8), (3.0, 6.0))}
    scores = Scores("layer", aggregate, curves)
    assert scores.of({"a": 6, "b": 2}) == Curve((0.4, 0.8), (4.0 * factor, 8.0 * factor))


@pytest.mark.parametrize("change", [{"version": 2}, {"unit": "row"}, {"aggregate": None}])
def test_a_header_of_another_version_is_refused(change, tmp_path):
    path = written(tmp_path / "scores.jsonl", {**header_line("layer", "sum"), **change})
    with pytest.raises(RunError, match="not a file of scores that this version reads"):
        read_scores(path)


def test_there_are_no_scores_without_a_file(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_scores(tmp_path / "scores.jsonl")
