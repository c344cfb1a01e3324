"""Before they join, processes wait for each other; those that do not come are named, and nobody waits for ever."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from several import Started, several
from torch.distributed import HashStore

from ecoflap.core.errors import RankError
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


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="the system tells otherwise who is gone")
def test_one_that_dies_while_they_connect_is_found_out(tmp_path, monkeypatch, capfd):
    """The others wait in a library then, and cannot be interrupted."""
    for name, seconds in {"EVERY": 0.02, "SILENT": 0.5, "_GRACE": 0.2}.items():
        monkeypatch.setattr(watching, name, seconds)
    connect = joining._group
    monkeypatch.setattr(joining, "_group", lambda by: os._exit(3) if os.environ["RANK"] == "1" else connect(by))
    ended = several(2, lambda ranks: None, tmp_path, Started(hears=False))
    assert [one.code for one in ended] == [2, 3]
    assert "ecoflap: rank 1 of 2 has ended this run: its process is gone. The same command" in capfd.readouterr().err


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
    [({"MASTER_ADDR": None}, "MASTER_ADDR is not set"), ({"MASTER_PORT": "a"}, "'a'"), ({"MASTER_PORT": "99999"}, "")],
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
