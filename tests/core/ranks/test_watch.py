"""A process that gives no sign of life any more is found out, and which it is, whatever the others wait in."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore, TCPStore

from ecoflap.core.errors import RankError, RecipeError
from ecoflap.core.ranks import watch as watching
from ecoflap.core.ranks.join import _told
from ecoflap.core.ranks.watch import How, Watch, Watched, tell


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(watching, "EVERY", 0.02)
    monkeypatch.setattr(watching, "SILENT", 1.0)
    monkeypatch.setattr(watching, "_GRACE", 0.2)
    return TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)


@pytest.fixture
def ended(monkeypatch):
    """What is done to this process: the signal that interrupts it, and the code with which it is ended then."""
    done, event = [], threading.Event()
    monkeypatch.setattr(watching._thread, "interrupt_main", done.append)
    monkeypatch.setattr(watching.os, "_exit", lambda code: (done.append(code), event.set()))
    return lambda: event.wait(10) and done


def test_a_silent_process_is_named_and_who_waits_for_it_is_ended(store, ended, capsys):
    watch = Watch(store, 0, 2)
    watch.start()
    assert ended() == [ended()[0], 2]
    said = "rank 1 of 2 has ended this run: there was no sign of life of it for 1 seconds. The same command goes on"
    assert watch.lost.startswith(said)
    assert capsys.readouterr().err.startswith(f"ecoflap: {said}")


def test_nobody_is_named_while_all_are_alive(store, ended):
    both = [Watch(store, rank, 2) for rank in (0, 1)]
    for watch in both:
        watch.start()
    threading.Event().wait(2.0)
    for watch in both:
        watch.stop()
    assert [watch.lost for watch in both] == [None, None]


@pytest.fixture
def another(store):
    """``another(code)``: a process that runs this code and has said which it is, but gives no sign of life."""
    begun = []

    def begin(code, rank=1, **otherwise):
        process = subprocess.Popen([sys.executable, "-c", code])
        begun.append(process)
        told = watching._numbers_of(process.pid)
        found = {**watching.this_process(), "number": process.pid, "began": told["began"], **otherwise}
        store.set(f"process {rank}", json.dumps(found))
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


SLEEPS = "import time; time.sleep(60)"
CUT = "обучениемодели"
"""Linux keeps fifteen bytes of a name, of which the last is half of a letter here."""
needs_linux = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system tells it otherwise")


@needs_linux
def test_a_process_may_be_called_by_a_name_that_is_cut_inside_of_a_letter(tmp_path):
    script = tmp_path / CUT
    script.write_text("#!/bin/sh\necho begun\nread line\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"begun\n"  # it has its own name only when it has begun
            assert Path(f"/proc/{process.pid}/comm").read_bytes().rstrip() == CUT.encode()[:15]
            assert watching._numbers_of(process.pid)["began"].isdigit()
        finally:
            process.stdin.close()


@needs_linux
@pytest.mark.parametrize("is_waited_for", [False, True])
def test_a_process_that_is_gone_is_named(store, ended, another, is_waited_for):
    process = another(SLEEPS)
    watch = Watch(store, 0, 2)
    watch.start()
    process.kill()
    if is_waited_for:  # until then the system has it as a zombie
        process.wait()
    assert ended()
    assert watch.lost.startswith("rank 1 of 2 has ended this run: its process is gone. The same command goes on")


@needs_linux
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "rank 1 of 2 has ended this run: its process is gone. The same command goes on from where it was"),
        (How.REFUSED, "rank 1 of 2 has ended this run: no 'txet'."),
        (How.STOPPED, None),
        ("alive", None),
    ],
)
def test_one_that_is_stopped_knows_whether_it_is_for_another_that_has_ended(store, another, how, said):
    """Nobody has been silent for long: torchrun stops the others as soon as one has ended."""
    process = another("" if how == "killed" else SLEEPS)
    if how == "killed":
        process.wait()
    if how in list(How):
        tell(store, 1, "no 'txet'.", how=how)
    watch = Watch(store, 0, 2)
    for error in (KeyboardInterrupt(), SystemExit(1)):
        told = _told(error, watch)
        assert (type(told), str(told)) == ((RankError, said) if said else (type(error), str(error)))


@needs_linux
def test_a_process_that_is_there_and_idle_has_the_longer_limit(store, ended, another, monkeypatch):
    monkeypatch.setattr(watching, "LONG", 4.0)
    another(SLEEPS)
    watch = Watch(store, 0, 2)
    watch.start()
    assert ended()
    assert "there was no sign of life of it for 4 seconds" in watch.lost


def stop(process):
    """Stop a process, and wait until the system has it as such."""
    os.kill(process.pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    while watching._numbers_of(process.pid)["state"] != "T":
        assert time.monotonic() < until
        time.sleep(0.01)


@needs_linux
def test_a_process_that_is_stopped_is_named_long_before_one_that_may_be_alive(store, ended, another):
    stop(another(SLEEPS))
    watch = Watch(store, 0, 2)
    watch.start()
    assert ended()
    said = "rank 1 of 2 has ended this run: it is stopped, as SIGSTOP does it, and gave no sign of life for 1 seconds"
    assert watch.lost.startswith(said)


@needs_linux
def test_the_next_of_the_same_machine_is_watched_behind_one_of_another(store, ended, another):
    """As the first of a machine by its last: of another machine nobody sees that a process is stopped."""
    another(SLEEPS, rank=1, machine="another")
    stop(another(SLEEPS, rank=2))
    watch = Watch(store, 0, 3)
    watch.start()
    assert ended()
    assert watch.lost.startswith("rank 2 of 3 has ended this run: it is stopped")


def test_time_in_which_one_could_not_look_itself_does_not_count(store, monkeypatch):
    """As where all processes were stopped for an hour, and this one is the first to go on."""
    now = [0.0]
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watching, "LOOK", 0.4)
    watched = Watched(store, 1)
    now[0] += 3600
    assert watched.why_gone() is None
    now[0] += 3600
    assert watched.why_gone() is None
    now[0] += 3600
    assert watched.why_gone() == "there was no sign of life of it for 1 seconds"
    store.add("alive 1", 1)
    assert watched.why_gone() is None


@needs_linux
def test_a_process_that_computes_is_alive_however_long_it_is_silent(store, ended, another, monkeypatch):
    monkeypatch.setattr(watching, "LONG", 2.0)
    process = another("while True: pass")
    watch = Watch(store, 0, 2)
    watch.start()
    threading.Event().wait(6.0)
    assert watch.lost is None
    process.kill()
    assert ended()
    assert "its process is gone" in watch.lost


@needs_linux
@pytest.mark.parametrize("otherwise", [{"machine": "another"}, {"machine": None}])
def test_one_of_another_machine_has_the_longer_limit_until_a_connection_breaks(store, ended, another, otherwise):
    another(SLEEPS, **otherwise)
    watch = Watch(store, 0, 2)
    watch.start()
    threading.Event().wait(2.0)
    assert watch.lost is None
    said = watch.who_is_gone()
    watch.stop()  # or its thread would end this process, behind the test
    assert said.startswith("rank 1 of 2 has ended this run: there was no sign of life of it for 1 seconds")


def test_the_first_reason_stays(store):
    assert tell(store, 1, "it broke")["rank"] == 1
    assert tell(store, 0, "so did this")["problems"] == ["it broke"]
    assert Watch(store, 0, 2).tell("and this") == {"rank": 1, "problems": ["it broke"], "how": "found"}


class Gone(HashStore):
    """A store that nobody holds any more."""

    def add(self, key, amount):
        raise RuntimeError("Connection reset by peer")

    def check(self, keys):
        raise RuntimeError("Failed to recv, got 0 bytes")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RecipeError("it is wrong"), RankError("rank 1 of 3: it is wrong")),
        (ValueError("it broke"), ValueError("it broke")),
        (SystemExit(1), SystemExit(1)),
    ],
)
def test_who_can_tell_nobody_why_it_ends_says_so_itself(error, raised):
    told = _told(error, Watch(Gone(), 1, 3))
    assert (type(told), str(told)) == (type(raised), str(raised))


def test_who_holds_the_store_stays_until_all_that_have_come_have_heard(store, monkeypatch):
    monkeypatch.setattr(watching, "_HEARING", 3600.0)
    first, second = (Watch(store, rank, 4) for rank in (0, 1))
    for rank in range(3):  # and the last has not
        store.set(f"process {rank}", "{}")
    stays = threading.Thread(target=first.let_hear, daemon=True)
    tell(store, 2, "its process is gone")
    stays.start()
    stays.join(0.5)
    assert stays.is_alive()
    second.tell("it broke as well")
    stays.join(60)
    assert not stays.is_alive()


@pytest.mark.parametrize(("rank", "held_by_starter"), [(1, False), (0, True), (0, False)])
def test_who_holds_no_store_stays_for_nobody_and_who_does_not_for_ever(store, monkeypatch, rank, held_by_starter):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(held_by_starter))
    monkeypatch.setattr(watching, "_HEARING", 0.1 if (rank, held_by_starter) == (0, False) else 3600.0)
    for other in range(3):
        store.set(f"process {other}", "{}")
    Watch(store, rank, 3).let_hear()


STARTER = "this run has ended: the process that started its ranks, or the machine of their rendezvous, does not answer"


@pytest.mark.parametrize(
    ("held_by_starter", "rank", "here", "said", "speaks"),
    [
        (True, 0, 0, STARTER, True),
        (True, 1, 1, STARTER, False),
        (True, 2, 0, STARTER, True),  # on another machine, where nobody may hear of the others
        (False, 1, 0, "rank 0 of 3 has ended this run: it does not answer", True),
        (False, 2, 1, "rank 0 of 3 has ended this run: it does not answer", False),
    ],
)
def test_who_holds_the_store_is_named_when_it_is_gone(
    store, ended, monkeypatch, held_by_starter, rank, here, said, speaks
):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(held_by_starter))
    monkeypatch.setenv("LOCAL_RANK", str(here))
    watch = Watch(Gone(), rank, 3)
    watch.start()
    assert ended()
    assert watch.lost == f"{said} any more. The same command goes on from where it was"
    assert watch.speaks == speaks
    watch.stop()


def test_a_connection_that_breaks_with_nobody_gone_is_told_without_the_librarys_text(store, monkeypatch):
    monkeypatch.setattr(watching, "SILENT", -4.0)
    assert Watch(store, 0, 2).who_is_gone() == (
        "the connection to another rank broke, and none of them is gone. The same command goes on from where it was"
    )


def test_an_error_of_the_connection_is_put_down_to_who_is_gone(store, ended, monkeypatch):
    watch = Watch(store, 0, 2)
    watch.start()
    assert watch.who_is_gone().startswith("rank 1 of 2 has ended this run")
    watch.stop()
