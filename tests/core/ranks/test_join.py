"""Before they join, processes wait for each other; those that do not come are named, and nobody waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from several import Started, several
from torch.distributed import HashStore

from ecoflap.core.errors import RankError, RecipeError
from ecoflap.core.ranks import join as joining
from ecoflap.core.ranks import watch as watching
from ecoflap.core.ranks.join import joined
from ecoflap.core.ranks.watch import How, Watch, tell


@pytest.mark.parametrize("lost", [2, 0])
def test_one_that_dies_before_it_joins_is_named_once(lost, tmp_path):
    how = Started(lost=(lost,), comes=1.0, hears=False)  # as on another machine
    ended = several(3, lambda ranks: None, tmp_path, how)
    assert ended.pop(lost) == (3, "")
    assert [one.code for one in ended] == [2, 2]
    (told,) = (one.said for one in ended if not one.said.startswith("SaidElsewhereError"))
    assert told.startswith(f"RankError: rank {lost} of 3 has not come within 1 seconds: not started, or ended before")
    assert told.endswith("See what was said there, mend it, and start all again")


def test_what_has_started_it_tells_so_before(tmp_path):
    dead, alive = several(2, lambda ranks: None, tmp_path, Started(lost=(0,)))
    assert (dead, alive.code) == ((3, ""), 2)
    assert alive.said == (
        "RankError: rank 0 of 2 has ended this run: it ended with 3. The same command goes on from where it was"
    )


def test_without_torchrun_the_first_holds_the_store(tmp_path):
    def talk(ranks):
        assert ranks.gather(ranks.rank) == [0, 1]

    assert several(2, talk, tmp_path, Started(holds=False)) == [(0, "")] * 2


def test_without_torchrun_too_they_are_named(tmp_path):
    how = Started(lost=(1,), comes=1.0, hears=False, holds=False)
    first, _ = several(2, lambda ranks: None, tmp_path, how)
    assert first.said.startswith("RankError: rank 1 of 2 has not come within 1 seconds")


def test_without_torchrun_the_first_ends_once_the_others_have_heard_why(tmp_path):
    """They find the same as it has, and at a time at which it would be gone."""

    def refuse(ranks):
        time.sleep(min(ranks.rank, 1))
        raise RecipeError("no pruner named 'wnada'")

    first, *others = several(3, refuse, tmp_path, Started(holds=False, hears=False))
    assert first == (2, "RecipeError: no pruner named 'wnada'")
    said = "rank 0 of 3 has ended this run: no pruner named 'wnada'"  # what it hears while it sleeps
    assert {code for code, _ in others} == {2}
    assert {one for _, one in others} <= {f"SaidElsewhereError: {one}" for one in (said, "no pruner named 'wnada'")}


def test_without_torchrun_others_are_refused_in_a_sentence_where_the_first_is_gone_without_a_word(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(watching, "EVERY", 5.0)  # the threads do not find it out first

    connected = tmp_path / "connected"

    def refuse(ranks):
        if ranks.rank == 0:
            while not connected.exists():
                time.sleep(0.01)
            os._exit(3)
        connected.touch()
        time.sleep(1)
        raise RecipeError("no pruner named 'wnada'")

    first, second = several(2, refuse, tmp_path, Started(holds=False, hears=False))
    assert first == (3, "")
    assert second == (2, "RankError: rank 1 of 2: no pruner named 'wnada'")


WAITS = """
import signal
from ecoflap.core.cli.stopping import stoppable
from ecoflap.core.ranks.join import joined

signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell starts in the background
with stoppable():
    print("waits", flush=True)
    with joined():
        pass
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "listens"),
    [
        (signal.SIGTERM, False),
        (signal.SIGINT, True),  # as a first process that is stopped
    ],
)
def test_a_signal_ends_one_that_waits_for_the_store(number, listens):
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        process = subprocess.Popen(
            [sys.executable, "-c", WAITS],
            env={**os.environ, **where, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout.readline() == "waits\n"
            time.sleep(0.5)  # until it does
            process.send_signal(number)
            _, said = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert said == "\necoflap: stopped; the same command goes on from here\n"


@pytest.mark.timeout(120)
def test_where_nothing_answers_that_is_said_without_frames_of_torch(monkeypatch, capfd):
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        said = rf"or rank 0 has to answer: nothing answers at 127\.0\.0\.1:{port}: "
        with pytest.raises(RankError, match=said), joined(0.5):
            pass
    assert capfd.readouterr().err == ""


@pytest.mark.timeout(120)
def test_where_something_else_listens_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(joining, "_TRY", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(RankError, match=rf"what listens at 127\.0\.0\.1:{port} says nothing"), joined(0.5):
            pass


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system tells otherwise who is gone")
def test_one_that_dies_while_they_connect_is_found_out(tmp_path, monkeypatch, capfd):
    """The others wait in a library then, and cannot be interrupted."""
    for name, seconds in {"EVERY": 0.02, "SILENT": 0.5, "_GRACE": 0.2}.items():
        monkeypatch.setattr(watching, name, seconds)
    connect = joining._group
    monkeypatch.setattr(joining, "_group", lambda *of, **by: os._exit(3) if of[0].rank else connect(*of, **by))
    ended = several(2, lambda ranks: None, tmp_path, Started(hears=False))
    assert [one.code for one in ended] == [2, 3]
    assert "ecoflap: rank 1 of 2 has ended this run: its process is gone. The same command" in capfd.readouterr().err


def test_where_the_first_dies_while_they_connect_what_held_the_store_is_said_to_be_gone(tmp_path, monkeypatch, capfd):
    """By an error of the other's connection, or, where that is tried again and again, by the thread that watches."""
    for name, seconds in {"EVERY": 0.02, "_GRACE": 0.2}.items():
        monkeypatch.setattr(watching, name, seconds)
    connect = joining._group

    def die_or_connect(watch, store, *, by_device):
        return os._exit(3) if watch.rank == 0 else connect(watch, store, by_device=by_device)

    monkeypatch.setattr(joining, "_group", die_or_connect)
    first, second = several(2, lambda ranks: None, tmp_path, Started(holds=False, hears=False))
    assert (first, second.code) == ((3, ""), 2)
    assert "does not answer any more" in second.said + capfd.readouterr().err


def test_what_keeps_processes_apart_that_have_all_come_is_said(store, monkeypatch):
    def fail(backend, timeout, store, rank, world_size):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(watching, "SILENT", -5.0)  # none is waited for
    monkeypatch.setattr(joining.distributed, "init_process_group", fail)
    said = r"^all processes have come, and cannot connect to each other: no route to host\. .*GLOO_SOCKET_IFNAME"
    with pytest.raises(RankError, match=said):
        joining._group(Watch(store, 1, 2), store, by_device=False)


@pytest.mark.parametrize("with_device", ["0", "1"])
def test_one_with_a_device_of_its_own_and_one_without_talk_through_main_memory(with_device, tmp_path, monkeypatch):
    """Where each took the backend of its own machine, they would wait for each other for ever."""
    monkeypatch.setattr(joining, "_has_own_device", lambda: os.environ["RANK"] == with_device)

    def talk(ranks):
        assert ranks.gather(ranks.rank) == [0, 1]

    assert several(2, talk, tmp_path) == [(0, "")] * 2


def test_one_that_is_killed_behind_the_run_is_named(tmp_path):
    """The others wait for it then, so that none ends before all are done."""

    def die(ranks):
        if ranks.rank == 0:
            time.sleep(0.5)  # until the other waits
            os.kill(os.getpid(), signal.SIGKILL)

    dead, alive = several(2, die, tmp_path)
    assert (dead.code, alive.code) == (-signal.SIGKILL, 2)
    assert alive.said.startswith("RankError: rank 0 of 2 has ended this run: it ended with -9. The same command")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "a"}, "'a'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is 99999"),
        ({"RANK": "2"}, "RANK is 2, and the ranks of 2 processes are from 0 to 1"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"WORLD_SIZE": "two"}, "'two'.* unset RANK WORLD_SIZE"),
    ],
)
def test_an_environment_that_names_no_place_is_refused(wrong, said, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in wrong.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=f"cannot find each other .*{said}"), joined(0.1):
        pass


@pytest.fixture
def store():
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    return store


def test_many_are_counted(store):
    with pytest.raises(RankError, match=r"^ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12 have not come within 0 sec"):
        Watch(store, 0, 12).wait_for_all(0.0)


def test_who_comes_later_ends_with_those_that_have_given_up(store):
    tell(store, 0, "rank 2 of 3 has not come", how=How.FAILED)
    watch = Watch(store, 1, 3)
    with pytest.raises(RankError, match=r"^rank 0 of 3 has ended this run: rank 2 of 3 has not come\. The same"):
        watch.wait_for_all(60.0)
    assert not watch.speaks


def test_nobody_is_missed_who_has_come(store):
    with pytest.raises(RankError, match="rank 1 of 2 has not come"):
        Watch(store, 0, 2).wait_for_all(-1.0)
    Watch(store, 1, 2).wait_for_all(-1.0)


def test_nobody_is_missed_because_the_machine_slept(store, monkeypatch):
    now = [0.0]

    def sleep(_):
        if now[0]:
            store.set("process 1", "{}")
        now[0] += 3600

    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert not Watch(store, 0, 2).wait_for_all(60.0)
    assert now[0] == 7200


@pytest.mark.parametrize("have", [(True, True), (True, False), (False, True), (False, False)])
def test_devices_are_used_where_each_has_one(have, store):
    first, second = (Watch(store, rank, 2) for rank in range(2))
    with pytest.raises(RankError, match="rank 1 of 2 has not come"):
        first.wait_for_all(-1.0, has_device=have[0])
    assert second.wait_for_all(-1.0, has_device=have[1]) == all(have)


class Gone(HashStore):
    """A store that nobody holds any more."""

    def set(self, key, value):
        raise RuntimeError("Connection reset by peer")


def test_a_store_that_is_gone_is_told(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RankError, match=r"^this run has ended: the process that started its ranks, or the machine"):
        Watch(Gone(), 0, 2).wait_for_all(1.0)
