"""The run folder itself: whose it is, what it remembers."""

import json

import pytest

from ecoflap.core.disk.sealed_lines import append_line
from ecoflap.core.errors import RunError
from ecoflap.core.machine.environment import peak_memory
from ecoflap.core.machine.part_code import Source
from ecoflap.core.record.clock import Clock
from ecoflap.core.record.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_what_was_fingerprinted_first_must_stay(folder):
    folder.identify({"model": {"a": "1", "b": "2"}})
    folder.identify({"model": {"a": "1", "b": "2"}, "calibration data": "3"})
    folder.identify({"model": {"a": "1", "b": "2"}})
    assert json.loads(folder.fingerprints.read_text())["calibration data"] == "3"
    with pytest.raises(RunError, match=r"another model \(b, c\) and another calibration data than"):
        folder.identify({"model": {"a": "1", "b": "0", "c": "1"}, "calibration data": "4"})


HEADER, SCORE = {"version": 1}, {"name": "a", "score": 1.0}
NOTHING, DENSE = {}, {"evaluations.jsonl": [{"stage": "dense"}]}


@pytest.mark.parametrize(
    ("files", "changed", "refused"),
    [
        (NOTHING, "adapter", False),
        ({"scores.jsonl": [HEADER]}, "adapter", False),
        (DENSE, "adapter", True),
        (DENSE, "scorer", False),
        ({**DENSE, "scores.jsonl": [HEADER]}, "scorer", False),
        ({**DENSE, "scores.jsonl": [HEADER, SCORE]}, "scorer", True),
        ({"trials.jsonl": [{"why": ""}]}, "scorer", True),
    ],
)
def test_other_code_is_refused_where_it_has_found_something(folder, files, changed, refused):
    before = {name: Source(f"{name}.py", "1" * 64) for name in ("adapter", "scorer")}
    now = {**before, changed: Source(f"{changed}.py", "2" * 64)}
    folder.identify_code(before, evaluated_by=["adapter"])
    for name, lines in files.items():
        for line in lines:
            append_line(folder.path / name, line)
    if refused:
        with pytest.raises(RunError, match=rf"another {changed} \({changed}\.py\).* delete this folder alone"):
            folder.identify_code(now, evaluated_by=["adapter"])
        assert folder.identify_code(now, evaluated_by=["adapter"], accept=True)
        assert not folder.is_all_by({changed: "2" * 64})
    else:
        assert folder.identify_code(now, evaluated_by=["adapter"]) == []
        assert folder.is_all_by({name: one.sha256 for name, one in now.items()})
        assert not folder.scores.exists()


def test_a_stage_told_in_pieces_is_summed(folder):
    folder.record_stage("score", 1.25, 5)
    folder.record_stage("prune", 2.0, 9)
    folder.record_stage("score", 0.5, 7)
    assert folder.stages() == [
        {"stage": "score", "seconds": 1.75, "peak_memory": 7},
        {"stage": "prune", "seconds": 2.0, "peak_memory": 9},
    ]


def test_the_clock_tells_what_passed_since_it_last_told(folder, monkeypatch):
    now = iter([10.0, 11.0, 16.0, 16.0, 16.0, 18.0, 18.0])
    monkeypatch.setattr("ecoflap.core.record.clock.perf_counter", lambda: next(now))
    clock = Clock("score", folder)
    clock.tick()  # too early
    clock.tick()
    clock.stop()
    lines = [json.loads(line) for line in (folder.path / "stages.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [6.0, 2.0]
    assert all(line["peak_memory"] > 1e6 for line in lines)


def test_the_peak_is_what_was_held_at_once():
    before = peak_memory()
    held = bytes(range(256)) * 2_000_000
    assert peak_memory() >= before
    assert peak_memory() > len(held)


def test_a_warning_is_kept_once(folder):
    for message in ("a", "b", "a"):
        folder.record_warning(message)
    assert folder.warnings() == ["a", "b"]
