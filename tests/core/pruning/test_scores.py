"""Scores are read back as they were written; a line that is none is told with its number."""

import pytest
from sealed_by_hand import write_lines

from ecoflap.core.contracts.records import Estimate
from ecoflap.core.errors import RunError
from ecoflap.core.pruning.scores import header_line, read_scores, score_line


def written(path, *lines):
    write_lines(path, lines)
    return path


def test_scores_are_read_back_with_the_terms_of_estimates(tmp_path):
    lines = [score_line("a", 2.0), score_line("b", Estimate([1.0, 4.0])), {"name": "c", "score": 3}]
    scores = read_scores(written(tmp_path / "scores.jsonl", header_line("block", "mean"), *lines))
    assert (scores.unit, scores.aggregate) == ("block", "mean")
    assert scores.values == {"a": 2.0, "b": 2.5, "c": 3.0}
    assert scores.values["b"].terms == (1.0, 4.0)


@pytest.mark.parametrize(
    "line",
    [{"name": "a"}, {"name": 1, "score": 1.0}, {"name": "a", "score": "1"}, {"name": "a", "score": True}]
    + [{"name": "a", "score": 1.0, "terms": terms} for terms in (1.0, [], ["1"])],
)
def test_a_line_that_is_no_score_is_told_with_its_number(line, tmp_path):
    path = written(tmp_path / "scores.jsonl", header_line("layer", "sum"), score_line("a", 1.0), line)
    with pytest.raises(RunError, match=r"scores\.jsonl:3: this line is not the score of a layer or block"):
        read_scores(path)


@pytest.mark.parametrize("change", [{"version": 2}, {"unit": "row"}, {"aggregate": None}])
def test_a_header_of_another_version_is_refused(change, tmp_path):
    path = written(tmp_path / "scores.jsonl", {**header_line("layer", "sum"), **change})
    with pytest.raises(RunError, match="not a file of scores that this version reads"):
        read_scores(path)


def test_there_are_no_scores_without_a_file(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_scores(tmp_path / "scores.jsonl")
