"""A plan is read back as it was written; whatever else the file holds is told with its place."""

import json

import pytest
from sealed_by_hand import read_lines, write_lines, write_sealed

from ecoflap.core.errors import RunError
from ecoflap.core.planning.plan import Plan, PlannedGroup, PlannedLayer
from ecoflap.core.planning.plan_file import check_scores_of, read_plan, read_scores_of, write_plan
from ecoflap.core.planning.scores import header_line, score_line

PLAN = Plan(
    {"a": PlannedLayer(8, 4, "vision", "vision.0", "g"), "b": PlannedLayer(8, 4, "vision", "vision.0", "b", "2:4")},
    {"g": PlannedGroup(8, 4, "vision", 0.5, 0.125), "b": PlannedGroup(8, 4, "vision")},
)


def written(path, **changes):
    write_sealed(path, {**PLAN.dump(), "scores": "", **changes})
    return path


def test_a_plan_is_read_back(tmp_path):
    assert read_plan(written(tmp_path / "plan.json")) == PLAN


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"layers": []}, "layers: "),
        ({"layers": {"a": {"size": 8}}}, "layers.a.keep: Field required"),
        ({"layers": {"a": {"size": 8, "keep": "4", "tower": "", "block": "", "group": ""}}}, "layers.a.keep: "),
        ({"groups": None}, "groups: "),
        ({"scores": None}, "scores: "),
    ],
)
def test_what_is_no_plan_is_told_with_its_place_and_the_way_out(changes, place, tmp_path):
    path = written(tmp_path / "plan.json", **changes)
    with pytest.raises(RunError) as error:
        read_plan(path)
    assert all(problem.startswith(f"{path}: ") and problem.endswith("--fresh") for problem in error.value.problems)
    assert any(problem.startswith(f"{path}: {place}") for problem in error.value.problems), error.value.problems


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_what_holds_no_mapping_is_told_with_its_file(content, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"plan\.json: "):
        read_plan(path)


def test_a_plan_knows_the_scores_that_it_was_made_by(tmp_path):
    plan, scores = tmp_path / "plan.json", tmp_path / "scores.jsonl"
    lines = [header_line("layer", "sum"), score_line("a", 1.0), score_line("b", 2.0)]
    write_lines(scores, lines)
    assert read_scores_of(plan, scores).values == {"a": 1.0, "b": 2.0}  # there is no plan yet
    write_plan(plan, PLAN, {"norms": 3}, scores)
    assert json.loads(plan.read_text())["kept_whole"] == {"norms": 3}
    assert read_scores_of(plan, scores).values == {"a": 1.0, "b": 2.0}
    for other in (lines[:2], [*lines[:2], score_line("b", 3.0)]):  # sealed as if a run had written them
        write_lines(scores, other)
        assert read_lines(scores) == other
        with pytest.raises(RunError, match=r"scores\.jsonl: its last lines are gone, which plan\.json knows"):
            read_scores_of(plan, scores)


def test_scores_that_are_gone_are_missed_by_a_plan_that_was_made_by_them(tmp_path):
    plan, scores = tmp_path / "plan.json", tmp_path / "scores.jsonl"
    write_plan(plan, PLAN, {}, scores)
    check_scores_of(plan, scores)
    write_lines(scores, [header_line("layer", "sum"), score_line("a", 1.0)])
    write_plan(plan, PLAN, {}, scores)
    check_scores_of(plan, scores)
    scores.unlink()
    with pytest.raises(
        RunError, match=r"scores\.jsonl is missing, which plan\.json knows\. Restore the file, or begin"
    ):
        check_scores_of(plan, scores)
