"""Runs of a sweep that are done several at a time."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic, sleep

import pytest

import ecoflap
from ecoflap import SweepRequest
from ecoflap.core.cli.sweep_table import sweep_table
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.open_run import is_held
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.sweep.several import STOPPED, Runners, at_once
from ecoflap.core.sweep.sweep import planned_sweep, sweep
from ecoflap.core.text.strict_yaml import write_yaml


def test_so_many_are_under_way_at_a_time_and_all_are_done():
    under_way, most, lock = set(), [], threading.Lock()

    def do(job):
        with lock:
            under_way.add(job)
            most.append(len(under_way))
        threading.Event().wait(0.05)
        with lock:
            under_way.remove(job)
        return "odd" if job % 2 else ""

    found = dict(at_once(range(7), 3, do, lambda job, running: False, lambda: None))
    assert found == {number: "odd" if number % 2 else "" for number in range(7)}
    assert max(most) == 3


def test_one_that_can_take_over_what_another_finds_waits_for_it():
    begun, ended = [], []

    def do(job):
        begun.append((job, list(ended)))
        threading.Event().wait(0.05)
        return ""

    def waits(job, running):
        return job == "second" and "first" in running

    for job, _ in at_once(["first", "second", "other"], 2, do, waits, lambda: None):
        ended.append(job)
    assert "first" in dict(begun)["second"]
    assert sorted(ended) == ["first", "other", "second"]


def test_what_is_under_way_is_ended_where_the_sweep_is():
    """A pool waits for its threads, each of which waits for a process: it has to be ended before the pool is left."""
    ended = threading.Event()

    def do(job):
        assert job == 0 or ended.wait(60)
        return ""

    jobs = at_once([0, 1], 2, do, lambda job, running: False, ended.set)
    assert next(jobs) == (0, "")
    with pytest.raises(KeyboardInterrupt):
        jobs.throw(KeyboardInterrupt())
    assert ended.is_set()


def test_nothing_begins_after_the_end(plain, monkeypatch, tmp_path):
    """A thread may be on its way to a run when all of them are ended."""
    recipe = parse_recipe(plain(), registry=load_registry())
    runners = Runners(SweepRequest(what=tmp_path / "recipe.yaml", folder=tmp_path, processes=2))
    begun = []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **options: begun.append(command))
    runners.stop()
    assert runners.run(recipe, tmp_path / "run") == STOPPED
    assert not begun


@pytest.mark.slow
def test_a_sweep_on_two_processes_comes_to_what_it_comes_to_on_one(plain, lasting, tmp_path):
    (tmp_path / "recipe.yaml").write_text(write_yaml(plain()))
    asked = {"what": tmp_path / "recipe.yaml", "set_": ["prune=wanda,magnitude"], "keep_models": True}
    alone = ecoflap.sweep(SweepRequest(**asked, folder=tmp_path / "alone"))
    told = []
    both = ecoflap.sweep(SweepRequest(**asked, folder=tmp_path / "both", processes=2), tell=told.append)
    assert not both.failed
    assert [path.name for path in both.finished] == [path.name for path in alone.finished]
    for one, other in zip(alone.finished, both.finished, strict=True):
        assert lasting(other) == lasting(one)
    taken = (both.finished[1] / "taken_over.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in taken] == ["dense evaluation", "scores"]
    assert told[-1].startswith("[2/2] ")


@pytest.fixture
def recipe(plain):
    return parse_recipe(plain(), registry=load_registry())


@pytest.mark.slow
def test_what_a_run_fails_of_is_told_in_its_words(recipe, tmp_path):
    folder = RunFolder(tmp_path / "ecoflap: 1").path
    folder.write_text("a file")
    said = Runners(SweepRequest("any", processes=1)).run(recipe, folder)
    assert said == f"{folder} is a file; a run needs a folder. Name another one with --folder"


@pytest.fixture
def running(recipe, tmp_path, monkeypatch):
    """Has Python replaced by a script, which knows the name of the file in which a run says what it failed of."""

    def running(script):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nwhile [ $1 != --failure ]; do shift; done\nfailure=$2\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        return Runners(SweepRequest("any", processes=1)).run(recipe, tmp_path / "run")

    return running


@pytest.mark.parametrize(
    ("script", "failure", "passed_on"),
    [
        ("exit 0", "", ""),
        ("echo loud >&2; printf 'no ecoflap: here' > $failure; exit 2", "no ecoflap: here", ""),
        ("echo Traceback >&2; printf 'ValueError: x' > $failure; exit 1", "ValueError: x", "Traceback\n"),
        ("echo progress >&2; echo killed >&2; exit 3", "it ended with code 3; it said last: killed", ""),
        ("exit 3", "it ended with code 3", ""),
        ("echo progress >&2; kill -9 $$", "SIGKILL ended it", ""),
        ("echo 'what(): no room' >&2; kill -6 $$", "SIGABRT ended it; it said last: what(): no room", ""),
        ("echo 'ecoflap: stopped' >&2; exit 130", STOPPED, ""),
        ("kill -15 $$", STOPPED, ""),
    ],
)
def test_what_a_process_ended_of_is_told_and_its_traceback_passed_on(running, capsys, script, failure, passed_on):
    assert running(script) == failure
    assert capsys.readouterr().err == passed_on


def test_a_run_that_was_stopped_is_not_said_to_have_failed(plain, monkeypatch, tmp_path):
    (tmp_path / "recipe.yaml").write_text(write_yaml(plain()))
    monkeypatch.setattr(Runners, "run", lambda *_: STOPPED)
    told = []
    sweep(SweepRequest(tmp_path / "recipe.yaml", folder=tmp_path / "s", processes=2), tell=told.append)
    assert told[-1].startswith("[1/1] seed=0: stopped after ")


SLEEPS = """
from time import sleep
from ecoflap.plugins.pruners.magnitude import Magnitude

class Sleeps(Magnitude):
    def __call__(self, weight, seen, budget, layer):
        sleep(0.5)
        return super().__call__(weight, seen, budget, layer)
"""


@pytest.mark.slow
def test_runs_end_with_a_sweep_that_is_killed_and_the_same_command_goes_on_at_once(plain, tmp_path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    (tmp_path / "recipe.yaml").write_text(write_yaml(plain(prune="sleeps:Sleeps", score=None, evaluate=None)))
    paths = f"{Path(ecoflap.__file__).parents[1]}{os.pathsep}{tmp_path}"
    asked = {"env": {**os.environ, "PYTHONPATH": paths}, "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "ecoflap", "sweep", "recipe.yaml", "--set", "sparsity=0.5,0.6"]
    command += ["--folder", "s", "--processes", "2", "--allow-code"]
    runs = [tmp_path / "s" / f"sparsity-{sparsity}-seed-0" for sparsity in (0.5, 0.6)]
    with subprocess.Popen(command, **asked) as killed:
        while not all((run / "plan.json").is_file() for run in runs):
            assert killed.poll() is None, killed.stderr.read()
            sleep(0.05)
        killed.kill()
    until = monotonic() + 5
    while any(is_held(run / ".lock") for run in runs) and monotonic() < until:
        sleep(0.05)
    assert not any(is_held(run / ".lock") or (run / "report.json").is_file() for run in runs)
    again = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, **asked)
    assert again.returncode == 0, again.stderr
    assert not list((tmp_path / "s").glob(".starting-*"))


def test_in_rounds_nobody_waits_for_scores_that_are_not_taken_over(plain, tmp_path):
    (tmp_path / "recipe.yaml").write_text(write_yaml(plain(rounds=2, evaluate=None, export=None)))
    swept = {"version": 1, "recipe": "recipe.yaml", "grid": {"sparsity": [0.5, 0.6]}}
    (tmp_path / "sweep.yaml").write_text(write_yaml(swept))
    request = SweepRequest(tmp_path / "sweep.yaml", folder=tmp_path / "s")
    (section,) = sweep_table(request, planned := planned_sweep(request))
    assert [row[3] for row in section.rows] == ["computed", "computed"]
    assert [one.scores for one in planned] == ["", ""]
