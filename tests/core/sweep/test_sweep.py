"""Sweeps that are run: what they share, what is left of them, how they go on, and one run's failure."""

import json
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace

import pytest
from killing import fork
from sealed_by_hand import write_sealed

from ecoflap.core.cli.sweep_table import sweep_table
from ecoflap.core.compare.comparison import compared
from ecoflap.core.contracts.events import LayerPruned, RunStarted, StageStarted
from ecoflap.core.errors import EcoflapError, RankError, RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.open_run import open_run
from ecoflap.core.record.report import read_report
from ecoflap.core.record.sweep_list import swept_runs
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.sweep.runs import record_runs
from ecoflap.core.sweep.sweep import planned_sweep, sweep

METHODS = {"plain": {"score": None}, "scored": {}}
QUICK = {"export": None, "prune": "magnitude", "score": {"use": "magnitude"}}


@pytest.fixture
def file(plain, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(**QUICK)))

    def file(**keys):
        written = {"version": 1, "recipe": "recipe.yaml", "grid": {"sparsity": [0.5, 0.75]}, "methods": METHODS, **keys}
        (tmp_path / "sweep.yaml").write_text(json.dumps(written))
        return tmp_path / "sweep.yaml"

    return file


class Ear:
    """Hears what is done, and raises where it is told to."""

    def __init__(self):
        self.stages, self.folder = [], None

    def __call__(self, event):
        if isinstance(event, RunStarted):
            self.folder = event.folder.name
        if isinstance(event, StageStarted):
            self.stages.append((self.folder, event.stage))

    def of(self, stage):
        return [folder for folder, name in self.stages if name == stage]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_from_python_one_of_several_processes_is_refused_as_in_a_shell(file, tmp_path, monkeypatch, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    said = "ecoflap sweep is for one process, and WORLD_SIZE is 2: .* ecoflap sweep … --processes 2"
    with pytest.raises(RankError, match=said):
        sweep(SweepRequest(file(), folder=tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_scores_and_the_dense_evaluation_are_computed_once_and_models_are_not_kept(file, heard_by, tmp_path):
    ear, told = Ear(), []
    done = sweep(SweepRequest(file(), folder=tmp_path / "s"), registry=heard_by(ear), tell=told.append)
    runs = [path.name for path in done.finished]
    assert runs == [f"{method}-sparsity-{s}-seed-0" for method in METHODS for s in (0.5, 0.75)]
    assert done.failed == {}
    assert ear.of("evaluate dense") == runs[:1]
    assert len(ear.of("prune")) == 4
    lines = [(path / "scores.jsonl").read_bytes() for path in done.finished[2:]]
    assert lines[0] == lines[1]
    asked = list(read_report(done.finished[3] / "report.json").recipe.reuse)
    assert asked == [str(done.finished[2]), str(done.finished[0])]
    assert not [path for path in done.folder.rglob("model")]
    assert all(read_report(path / "report.json").model_bytes > 0 for path in done.finished)
    assert told[0] == f"sweep folder {tmp_path / 's'}: 4 runs: 4 to do"
    assert told[1] == "[1/4] plain, sparsity=0.5, seed=0"
    assert told[2].startswith("[1/4] plain, sparsity=0.5, seed=0: done in ")

    again = sweep(SweepRequest(file(), folder=tmp_path / "s"), registry=heard_by(silent := Ear()), tell=told.append)
    assert again.finished == done.finished
    assert silent.stages == []
    assert told[-1].endswith(": 4 runs: 4 done")

    grown = sweep(SweepRequest(file(), folder=tmp_path / "s", set_=["sparsity=0.6"]), registry=heard_by(more := Ear()))
    assert len(grown.finished) == 2
    assert more.of("evaluate dense") == []
    assert len(swept_runs(tmp_path / "s")) == 6
    found = compared([tmp_path / "s"]).runs
    assert len(found) == 6
    both = ("dense evaluation", "scores")
    expected = {"plain-sparsity-0.5-seed-0": (), "scored-sparsity-0.5-seed-0": both[:1]}
    for run in found:
        assert run.taken_over == expected.get(run.name, both if run.report.is_scored else both[:1])


def test_the_list_beforehand_says_what_is_taken_over_then(file, tmp_path):
    """A run that evaluates nothing leaves no dense evaluation, and one of an earlier grid does."""
    methods = {"blind": {"evaluate": [], "score": None, "allocate": "uniform"}, "plain": METHODS["plain"]}
    request = SweepRequest(file(methods=methods, grid={}), folder=tmp_path / "s")

    def listed(request):
        (section,) = sweep_table(request, planned_sweep(request))
        return {row[1]: row[3:] for row in section.rows}

    assert listed(request) == {"blind-seed-0": ("none", "none"), "plain-seed-0": ("none", "computed")}
    sweep(request)
    (other,) = listed(
        SweepRequest(file(methods={"scored": METHODS["scored"]}, grid={}), folder=tmp_path / "s")
    ).values()
    assert other == ("computed", "that of plain-seed-0")


def test_models_are_kept_where_that_is_asked(file, tmp_path):
    done = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s", keep_models=True))
    assert all((path / "model").is_dir() for path in done.finished)
    sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    assert not any((path / "model").exists() for path in done.finished)


def test_a_sweep_that_is_killed_goes_on_with_the_same_bits(file, heard_by, lasting, tmp_path):
    whole = sweep(SweepRequest(file(grid={}), folder=tmp_path / "whole"))

    def dies(event, seen=[0]):  # noqa: B006 (counts across calls)
        seen[0] += isinstance(event, LayerPruned)
        if seen[0] == 30:  # of 21 a run: in the second
            os.kill(os.getpid(), signal.SIGKILL)

    child = fork()
    if child == 0:
        try:
            sweep(SweepRequest(file(grid={}), folder=tmp_path / "cut"), registry=heard_by(dies))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    told = []
    cut = sweep(SweepRequest(file(grid={}), folder=tmp_path / "cut"), tell=told.append)
    assert told[0].endswith("2 runs: 1 done, 1 begun")
    assert [lasting(path) for path in cut.finished] == [lasting(path) for path in whole.finished]


def test_a_run_that_fails_does_not_take_the_others_with_it(file, heard_by, tmp_path, monkeypatch):
    from ecoflap.core.sweep import sweep as module

    run = module.run

    def sometimes(recipe, **keywords):
        if recipe.sparsity == 0.5:
            unread = PermissionError(13, "Permission denied", str(tmp_path / "text"))
            raise unread if recipe.score is None else ValueError("a bug")
        return run(recipe, **keywords)

    monkeypatch.setattr(module, "run", sometimes)
    told = []
    done = sweep(SweepRequest(file(), folder=tmp_path / "s"), tell=told.append)
    assert [path.name for path in done.finished] == ["plain-sparsity-0.75-seed-0", "scored-sparsity-0.75-seed-0"]
    said = f"{tmp_path / 'text'} cannot be read or written: Permission denied. Change its permissions, or ask whom it"
    said += " belongs to."
    assert {path.name: message for path, message in done.failed.items()} == {
        "plain-sparsity-0.5-seed-0": said,
        "scored-sparsity-0.5-seed-0": "ValueError: a bug",
    }
    assert any("failed after" in line and line.endswith(said) for line in told)
    found = compared([tmp_path / "s"])
    assert [path.name for path in found.unfinished] == ["plain-sparsity-0.5-seed-0", "scored-sparsity-0.5-seed-0"]
    monkeypatch.undo()
    assert len(sweep(SweepRequest(file(), folder=tmp_path / "s")).finished) == 4


def test_a_second_sweep_of_a_folder_is_refused_and_leaves_the_first_ones_runs(file, heard_by, tmp_path):
    request, refused = SweepRequest(file(grid={}), folder=tmp_path / "s"), []

    def begin_another(event):
        if isinstance(event, RunStarted) and event.folder.name == "scored-seed-0":
            with pytest.raises(RunError) as caught:
                sweep(replace(request, fresh=True))
            refused.append(str(caught.value))

    done = sweep(request, registry=heard_by(begin_another))
    assert refused == [
        f"another process is running in {tmp_path / 's'}. Wait for it, or name another folder with --folder"
    ]
    assert [(path.name, (path / "report.json").is_file()) for path in done.finished] == [
        ("plain-seed-0", True),
        ("scored-seed-0", True),
    ]


def test_a_folder_in_which_a_sweep_was_killed_before_its_list_is_taken_up(file, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / ".sweep.lock").touch()
    assert len(planned_sweep(SweepRequest(file(), folder=tmp_path / "s"))) == 4


SCORER = """
class Mine:
    def __call__(self, replay, layers):
        for number, layer in enumerate(layers):
            yield layer.name, number + 1.0
"""


@pytest.fixture
def with_own_scorer(file, plain, tmp_path, monkeypatch):
    """``swept(text, sparsities)`` sweeps with a scorer of this code beside runs that have none of one's own."""
    code = tmp_path / "scorer_of_mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    methods = {"plain": {"score": None}, "scored": {"score": "scorer_of_mine:Mine"}}

    def swept(text, shares=(0.5,), ear=lambda event: None, **asked):
        code.write_text(text)
        sys.modules.pop("scorer_of_mine", None)
        sweep_file, parts = (
            file(grid={"sparsity": [*shares]}, methods=methods),
            replace(load_registry(), _observers=(("ear", ear),)),
        )
        return sweep(SweepRequest(sweep_file, folder=tmp_path / "s", allow_code=True, **asked), registry=parts)

    yield swept
    sys.modules.pop("scorer_of_mine", None)


def test_a_sweep_refuses_what_another_scorer_has_found_and_begins_that_alone_anew(with_own_scorer, tmp_path):
    """It says so before anything runs. What it advises loses no other run, and nothing of the new ones is of before."""
    assert len(with_own_scorer(SCORER).finished) == 2
    assert not with_own_scorer(SCORER).failed
    plain, scored = tmp_path / "s" / "plain-sparsity-0.5-seed-0", tmp_path / "s" / "scored-sparsity-0.5-seed-0"
    ear, edited, shares = Ear(), SCORER.replace("1.0", "2.0"), (0.5, 0.6, 0.75)
    with pytest.raises(
        EcoflapError, match=r"was begun with another scorer_of_mine \(.*Delete that folder and"
    ) as refused:
        with_own_scorer(edited, shares, ear)
    (problem,) = refused.value.problems
    assert problem.startswith(f"{scored} was begun with")
    assert not ear.folder
    before = (plain / "report.json").read_bytes()
    shutil.rmtree(scored)
    done = with_own_scorer(edited, shares, ear)
    assert not done.failed
    assert (plain / "report.json").read_bytes() == before
    first, *others = (RunFolder(path) for path in done.finished if path.name.startswith("scored"))
    assert "scores" not in first.taken_over()
    assert [("scores" in run.taken_over()) for run in others] == [True, True]


def test_a_sweep_keeps_what_another_scorer_has_found_where_that_is_accepted(with_own_scorer):
    with_own_scorer(SCORER)
    assert not with_own_scorer(SCORER.replace("1.0", "2.0"), accept_change=True).failed


def test_no_sweep_is_begun_inside_what_belongs_to_a_run(plain, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text("version: 1")
    run.lock.touch()
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(**QUICK)))
    with pytest.raises(RunError, match=r"is inside exports/ of the run in"):
        sweep(SweepRequest(tmp_path / "recipe.yaml", folder=run.exports / "sweep"))
    assert not run.exports.exists()


def test_runs_that_failed_before_they_had_a_score_go_on_with_the_scorer_that_was_mended(with_own_scorer):
    failed = with_own_scorer(SCORER.replace("for number", "raise ValueError('a bug')\n        for number"))
    assert [path.name for path in failed.failed] == ["scored-sparsity-0.5-seed-0"]
    ear = Ear()
    assert not with_own_scorer(SCORER, ear=ear).failed
    assert {folder for folder, _ in ear.stages} == {"scored-sparsity-0.5-seed-0"}
    assert not ear.of("evaluate dense")


def test_another_recipe_is_refused_before_anything_runs_and_fresh_begins_anew(file, plain, heard_by, tmp_path):
    first = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    before = (first.finished[0] / "plan.json").read_text()
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(**QUICK, sparsity=0.25)))
    with pytest.raises(EcoflapError, match=r"sparsity: 0\.5 vs 0\.25 \(before vs now\)\. Sweep into another folder"):
        sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    assert (first.finished[0] / "plan.json").read_text() == before
    again = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s", fresh=True))
    assert read_report(again.finished[0] / "report.json").sparsity == 0.25


def test_another_evaluator_is_run_on_what_is_done(file, plain, tmp_path):
    first = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    kept = (first.finished[1] / "scores.jsonl").read_bytes()
    more = {**plain()["evaluate"], "data": {**plain()["evaluate"]["data"], "samples": 3}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(**QUICK, evaluate=[plain()["evaluate"], more])))
    again = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    report = read_report(again.finished[1] / "report.json")
    assert list(report.measures.pruned) == ["perplexity", "perplexity (2)"]
    assert (again.finished[1] / "scores.jsonl").read_bytes() == kept


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_folder_of_something_else_is_refused_and_left_alone(file, tmp_path, kind):
    target = tmp_path / "mine"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="--folder"):
        sweep(SweepRequest(file(grid={}), folder=target))
    assert [path.name for path in target.parent.rglob("mine/*")] == ([] if kind == "file" else ["notes.txt"])


def test_a_folder_whose_name_is_not_utf8_is_refused_before_anything_is_made(file, tmp_path):
    asked = file(grid={})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match="is not UTF-8"):
        sweep(SweepRequest(asked, folder=os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")))
    assert sorted(tmp_path.iterdir()) == before


def test_a_request_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert SweepRequest("some/table.yaml").target == tmp_path / "runs" / "sweeps" / "table"
    assert SweepRequest("table", folder="mine").target == tmp_path / "mine"


def test_runs_are_planned_without_anything_being_written(file, tmp_path):
    request = SweepRequest(file(), set_=["sparsity=0.6"], seeds="4,7", folder=tmp_path / "s")
    assert [run.recipe.seed for run in planned_sweep(request)] == [4, 4, 7, 7]
    assert not (tmp_path / "s").exists()


BROKEN = {
    '{"version": 2, "runs": []}': "version is 2; this version of ecoflap reads 1",
    '{"version": 1}': "runs should list runs, each with a folder and a method",
    '{"version": 1, "runs": {"a": 1}}': "runs should list runs",
    '{"version": 1, "runs": [{"folder": "a"}]}': "runs should list runs",
    '{"version": 1, "runs": ["a"]}': "runs should list runs",
    '{"version": 1, "ru': "this is not JSON",
    '{"version": 1, "runs": []}': "runs lists none, and a sweep has one at least. Begin the sweep anew with --fresh",
}
NOT_INSIDE = ("", ".", "..", "../a", "/a", "a/b", "a\\b", "a\0b")


@pytest.mark.parametrize(("text", "problem"), BROKEN.items())
def test_a_list_of_runs_that_cannot_be_read_is_refused_by_its_name_and_written_anew_with_fresh(tmp_path, text, problem):
    write_sealed(tmp_path / "sweep.json", text)
    for use in (lambda: swept_runs(tmp_path), lambda: compared([tmp_path]), lambda: record_runs(tmp_path, [])):
        with pytest.raises(RunError, match=rf"sweep\.json: {problem}"):
            use()
    entry = {"folder": "a", "method": "", "seed": 0, "grid": {}}
    record_runs(tmp_path, [entry], fresh=True)
    assert swept_runs(tmp_path) == [entry]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, f"{name!r}, and the name of a folder in the sweep's is meant") for name in NOT_INSIDE),
        ("ä" * 128, "which is longer than 255 bytes, as no name is"),
        ("a" * 300, "…', which is longer than 255 bytes, as no name is"),
    ],
)
def test_a_run_whose_folder_is_none_of_the_sweeps_is_refused_by_its_number(tmp_path, name, told):
    write_sealed(tmp_path / "sweep.json", {"version": 1, "runs": [{"folder": f, "method": ""} for f in ("a", name)]})
    for use in (lambda: compared([tmp_path]), lambda: record_runs(tmp_path, [])):
        with pytest.raises(
            RunError, match=r"sweep\.json: runs\.1\.folder is .* --fresh, or in another folder"
        ) as refused:
            use()
        assert told in str(refused.value)


def test_a_model_that_cannot_be_deleted_is_told_and_the_other_runs_go_on(file, tmp_path):
    """As where somebody exports a run that has just ended, or NFS keeps a file that is open elsewhere."""
    first, told = tmp_path / "s" / "plain-seed-0", []
    with ExitStack() as held:

        def hold(line):
            told.append(line)
            if line.startswith("[1/2] plain, seed=0: done"):
                held.enter_context(open_run(first, fresh=False))

        done = sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"), tell=hold)
    assert [path.name for path in done.finished] == ["plain-seed-0", "scored-seed-0"]
    assert done.failed == {}
    assert [(path / "model").is_dir() for path in done.finished] == [True, False]
    (said,) = (line for line in told if "its model is left" in line)
    assert said.startswith("[1/2] plain, seed=0: its model is left, and the same command tries again to delete it: ")
    assert f"another process is running in {first}. " in said
    sweep(SweepRequest(file(grid={}), folder=tmp_path / "s"))
    assert not (first / "model").exists()


def test_a_link_for_a_model_goes_and_what_it_leads_to_stays(file, tmp_path):
    done = sweep(SweepRequest(file(grid={}, methods={}), folder=tmp_path / "s", keep_models=True))
    (model,) = (path / "model" for path in done.finished)
    model.rename(tmp_path / "mine")
    model.symlink_to(tmp_path / "mine")
    assert sweep(SweepRequest(file(grid={}, methods={}), folder=tmp_path / "s")).failed == {}
    assert not model.is_symlink()
    assert (tmp_path / "mine" / "config.json").is_file()
