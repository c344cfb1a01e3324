"""Progress: a bar on a terminal, plain lines elsewhere."""

import os
import pty
from contextlib import suppress

import pytest

from ecoflap.core.contracts.events import Progress as Done
from ecoflap.core.contracts.events import RunFailed, RunStarted, StageFinished, StageStarted, Warned
from ecoflap.plugins.observers import progress
from ecoflap.plugins.observers.progress import Progress


@pytest.fixture
def now(monkeypatch):
    """A clock that stands until it is set."""

    class Clock:
        time = 100.0

    monkeypatch.setattr(progress, "monotonic", lambda: Clock.time)
    return Clock


@pytest.fixture
def told(tmp_path, capsys):
    """What is written to a standard error that is no terminal."""
    observer, begun = Progress(), []

    def told(*events):
        if not begun:
            begun.append(True)
            observer.ecoflap_on_event(RunStarted(tmp_path, ("score",)))
            capsys.readouterr()
        for event in events:
            observer.ecoflap_on_event(event)
        return capsys.readouterr().err

    return told


def test_plain_lines(told, now):
    assert told(StageStarted("score"), Done("score", 0, 21, "layers")) == "score …\n"
    now.time += 9
    assert told(Done("score", 3, 21, "layers")) == ""
    now.time += 3
    assert told(Done("score", 6, 21, "layers")) == "score: 6 of 21 layers, about 30.0 s left\n"
    assert told(Done("score", 7, 21, "layers")) == ""
    assert told(Warned("odd [bold]")) == "warning: odd [bold]\n"
    assert told(StageFinished("score", 42.04)) == "score: 42.0 s\n"


def test_what_an_earlier_process_did_took_no_time(told, now):
    told(StageStarted("score"), Done("score", 10, 20, "layers"))
    now.time += 20
    assert told(Done("score", 12, 20, "layers")) == "score: 12 of 20 layers, about 80.0 s left\n"


def test_each_step_counts_with_the_time_that_it_took(told, now):
    """The first event comes when one step is done: its time is counted as little as its work."""
    told(StageStarted("prune"))
    now.time += 20
    told(Done("prune", 1, 5, "blocks"))
    now.time += 20
    assert told(Done("prune", 2, 5, "blocks")) == "prune: 2 of 5 blocks, about 60.0 s left\n"
    now.time += 20
    assert told(Done("prune", 3, 5, "blocks")) == "prune: 3 of 5 blocks, about 40.0 s left\n"


def test_nothing_is_guessed_from_nothing(told, now):
    told(StageStarted("prune"))
    now.time += 20
    assert told(Done("prune", 1, 3, "blocks")) == "prune: 1 of 3 blocks\n"


def test_the_run_folder_is_told(tmp_path, capsys):
    Progress().ecoflap_on_event(RunStarted(tmp_path / "run", ("load", "prune")))
    assert capsys.readouterr().err == f"run folder {tmp_path / 'run'}\n"


def test_of_a_run_that_is_finished_it_is_said(capsys, tmp_path):
    Progress().ecoflap_on_event(RunStarted(tmp_path / "run", ("load", "check")))
    assert "run: nothing is left to do, and what was found before is shown; --fresh" in capsys.readouterr().err


def all_of(terminal):
    """What was written so far."""
    os.set_blocking(terminal, False)
    read = b""
    with suppress(BlockingIOError):
        while piece := os.read(terminal, 4096):
            read += piece
    return read.decode()


def test_a_bar_with_the_time_left_on_a_terminal(tmp_path, monkeypatch, now):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        observer = Progress()
        for event in (RunStarted(tmp_path, ()), StageStarted("score"), Done("score", 0, 8, "layers")):
            observer.ecoflap_on_event(event)
        now.time += 10
        observer.ecoflap_on_event(Done("score", 4, 8, "layers"))
        observer._bars.refresh()
        observer.ecoflap_on_event(RunFailed("stopped"))
        terminal.flush()
        shown = all_of(ours)
    os.close(ours)
    assert "4 of 8 layers" in shown
    assert "about 10.0 s left" in shown
    assert "\x1b[?25h" in shown[shown.rindex("4 of 8") :]  # the cursor is there again
    assert observer._bars is None


def test_a_part_that_is_called_as_an_emoji_keeps_its_name(told):
    assert "warning: my:Key dropped 3" in told(Warned("my:Key dropped 3"))
    assert ":key: [b]" in told(Warned(":key: [b]"))
