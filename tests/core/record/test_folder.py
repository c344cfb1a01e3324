"""The run folder itself: what it remembers."""

import json

import pytest

from ecoflap.core.machine.environment import peak_memory
from ecoflap.core.record.clock import Clock
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.sealing.sealed_lines import append_line, last_seal


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


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


def test_of_every_file_of_lines_but_the_log_the_last_seal_is_known(folder):
    """So that a report can tell whether last lines are gone."""
    names = ("trials", "evaluations", "refined", "stages", "warnings", "taken_over", "log")
    for name in names:
        append_line(folder.path / f"{name}.jsonl", {"a": name})
    assert folder.last_seals() == {f"{name}.jsonl": last_seal(folder.path / f"{name}.jsonl") for name in names[:-1]}


def test_the_peak_is_what_was_held_at_once():
    before = peak_memory()
    held = bytes(range(256)) * 2_000_000
    assert peak_memory() >= before
    assert peak_memory() > len(held)


def test_a_warning_is_kept_once(folder):
    for message in ("a", "b", "a"):
        folder.record_warning(message)
    assert folder.warnings() == ["a", "b"]
