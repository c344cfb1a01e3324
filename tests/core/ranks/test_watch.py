"""A process that gives no sign of life any more is found out, and which it is, whatever the others wait in."""

import threading

import pytest
from torch.distributed import TCPStore

from ecoflap.core.ranks import watch as watching
from ecoflap.core.ranks.watch import Watch, tell


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


def test_the_first_reason_stays(store):
    assert tell(store, 1, "it broke")["rank"] == 1
    assert tell(store, 0, "so did this")["text"] == "it broke"
    assert Watch(store, 0, 2).tell("and this") == {"rank": 1, "text": "it broke", "by_itself": False}


def test_an_error_of_the_connection_is_put_down_to_who_is_gone(store, ended, monkeypatch):
    watch = Watch(store, 0, 2)
    watch.start()
    assert watch.who_is_gone(RuntimeError("reset by peer")).startswith("rank 1 of 2 has ended this run")
    watch.stop()
