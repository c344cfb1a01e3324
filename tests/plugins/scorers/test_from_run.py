"""Scores taken over from a run."""

from fractions import Fraction
from types import SimpleNamespace

import pytest
from plan_contexts import context
from sealed_by_hand import write_lines

from ecoflap import EcoflapError, Estimate
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.planning.plan_file import write_plan
from ecoflap.core.planning.scores import header_line, score_line
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.sealing.sealed_text import write_sealed_text
from ecoflap.core.text.strict_yaml import write_yaml
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.scorers.from_run import FromRun

RECIPE = SimpleNamespace(round_count=1, towers={}, included=())


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def test_scores_of_another_run(replay, tmp_path):
    names = [layer.name for layer in all_layers(replay)]
    lines = [
        header_line("layer", "mean"),
        *(score_line(name, Estimate([float(i), i + 1.0])) for i, name in enumerate(names)),
    ]
    write_lines(tmp_path / "scores.jsonl", lines)
    scorer = FromRun(tmp_path)
    assert (scorer.unit, scorer.aggregate) == ("layer", "mean")
    assert [float(score) for _, score in scorer(replay, all_layers(replay)[2:4])] == [2.5, 3.5]
    assert next(iter(scorer(replay, all_layers(replay)[2:3])))[1].terms == (2.0, 3.0)


def test_scores_of_another_run_that_lacks_some(replay, tmp_path):
    write_lines(tmp_path / "scores.jsonl", [header_line("layer", "sum")])
    with pytest.raises(EcoflapError, match=r"has no score for model.layers.0.self_attn.q_proj.weight"):
        list(FromRun(tmp_path)(replay, all_layers(replay)))
    with pytest.raises(EcoflapError, match="no such file; scores are there once a run has scored"):
        list(FromRun(tmp_path / "nowhere")(replay, all_layers(replay)))


def test_scores_that_lack_what_their_plan_knows(replay, tmp_path):
    lines = [header_line("layer", "mean"), *(score_line(layer.name, 1.0) for layer in all_layers(replay))]
    write_lines(tmp_path / "scores.jsonl", lines)
    plan = make_plan(pools_of(replay.anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
    write_plan(tmp_path / "plan.json", plan, {}, tmp_path / "scores.jsonl")
    assert len(list(FromRun(tmp_path)(replay, all_layers(replay)[:2]))) == 2
    write_lines(tmp_path / "scores.jsonl", lines[:-1])
    said = r"scores\.jsonl: its last lines are gone, which plan\.json knows\. Restore the file, or name another run"
    with pytest.raises(EcoflapError, match=said):
        list(FromRun(tmp_path)(replay, all_layers(replay)))


def test_a_plan_hears_of_scores_that_are_not_there_or_of_another_model(replay, tmp_path):
    def said(*lines):
        write_lines(tmp_path / "scores.jsonl", lines)
        return list(FromRun(tmp_path).problems(context(RECIPE, replay.anatomy)))

    blocks = [score_line(block.name, 1.0) for block in replay.blocks]
    assert said(header_line("block", "mean"), *blocks) == []
    named = ", ".join(layer.name for layer in all_layers(replay)[:3])
    layers = len(all_layers(replay))
    assert said(header_line("layer", "mean"), *blocks) == [
        f"{tmp_path}: it has no score of {layers} of the {layers} layers that this recipe allocates by ({named} and "
        f"{layers - 3} more). Name a run of this model and of these towers that has scored all of it, or score anew"
    ]
    (few,) = said(header_line("block", "mean"), *blocks[:-1])
    assert (
        f"it has no score of 1 of the {len(blocks)} blocks that this recipe allocates by ({replay.blocks[-1].name})"
        in few
    )
    (tmp_path / "scores.jsonl").unlink()
    (problem,) = FromRun(tmp_path).problems(context(RECIPE, replay.anatomy))
    assert "no such file; scores are there once a run has scored" in problem


def scored_by(folder, score):
    folder.mkdir()
    write_sealed_text(RunFolder(folder).recipe, write_yaml({"score": score}))


def test_whose_scores_they_are_is_looked_up_along_runs(tmp_path):
    scored_by(tmp_path / "first", {"use": "zeroth_order", "samples": 4})
    scored_by(tmp_path / "second", {"use": "from_run", "run": str(tmp_path / "first")})
    assert FromRun(tmp_path / "second").like == "zeroth_order"
    assert FromRun(tmp_path / "nowhere").like is None


def test_two_runs_that_name_each_other_are_nobodys(tmp_path):
    for one, other in (("first", "second"), ("second", "first")):
        scored_by(tmp_path / one, {"use": "from_run", "run": str(tmp_path / other)})
    assert FromRun(tmp_path / "first").like is None
