"""Each process of a run says again and again that it is there, and hears when another is not, or has failed.

A collective of torch waits for all processes, with gloo until a connection breaks and with nccl for as long as its time
limit is. This tells within a minute that one is gone, and which, whatever the others are waiting in.

Signs of life come from a thread, which has to wait while a library holds Python's lock, as torch.jit.save does for as
long as it writes. So one that is silent is looked at as the system sees it: on the same machine its process is there or
it is not, and one that computes is alive. Of another machine only a broken connection tells as much; so each process
watches over the next one of its own machine, too. One that is stopped, as by SIGSTOP, the system calls so, and it is
named as soon as it is looked at: a process that waits for its turn or for its memory is never called that. Whoever else
is silent and may be alive is given ten minutes: nothing tells one that a disk leaves hanging from one that holds
Python's lock while a slow disk takes what it has written.
"""

import _thread
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from ecoflap.core.errors import RankError, first_of

EVERY = 0.5
"""Seconds between two signs of life."""
SILENT = 30.0
"""Seconds without one after which a process is looked at, and is taken for gone where nothing says that it is alive."""
LONG = 600.0
"""Seconds without one after which also a process is taken for gone that is there, and neither speaks nor computes."""
LOOK = 5.0
"""Seconds that count at most between two looks: who was stopped or starved itself has not seen the others be silent,
and a machine that slept gave them no time to come."""
_GRACE = 10.0
"""Seconds that a process has to end by itself when another has failed; it may be waiting in a device's library."""
_HEARING = 2.0
"""Seconds that a process which holds the store stays at most, until the others have heard why it ends."""
_FAILED, _BROKEN = "failed", "broken"
"""Names in the store: of why the run ends, and of whether a connection broke."""
_STARTER_GONE = "the process that started its ranks, or the machine of their rendezvous, does not answer any more"
_GONE = "its process is gone"
_GOES_ON = "The same command goes on from where it was"


class How(StrEnum):
    """Says how it is known that a process has ended a run."""

    FOUND = "found"
    """Others have found it out; or it knows nothing of the kind itself."""
    FAILED = "failed"
    """It has told so itself, and its user too by a traceback, which says nothing of ranks."""
    REFUSED = "refused"
    """It has told so in a sentence, with what its user is to mend: the same command would find the same."""
    STOPPED = "stopped"
    """It was sent a signal, of which it has told the others alone."""


class Watch:
    """Watches over the processes of a run from a thread of its own.

    :param store: The store by which they have found each other, by a connection of this one's own.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.lost: str | None = None  # why this process ends, where that is another's doing
        self.speaks = True  # whether it is this process that says so to the user
        self.is_ending = False  # whether this process ends of itself, and is not to be interrupted
        self.has_interrupted = False
        self._store, self._ended = store, Event()
        self._thread = Thread(target=self._watch, name="ecoflap watch", daemon=True)

    def wait_for_all(self, seconds: float, *, has_device: bool = False) -> bool:
        """Say which process this is, and wait until all have said so: nobody watches over one that has not come.

        :param seconds: How long.
        :param has_device: Whether this process has a device of its own.
        :return: Whether each of them has.
        :raises RankError: With those that have not come by then; or with one that has failed meanwhile.
        """
        try:
            self._store.set(
                _name_of(self.rank), json.dumps({**this_process(), "has_device": has_device, "speaks_to": _reader()})
            )
            self._wait_for_all(seconds)
            return all(_process(self._store, rank).get("has_device", False) for rank in range(self.size))
        except RuntimeError as error:  # as in the thread: whoever holds the store is gone
            raise RankError(self._heard(_store_gone())) from error

    def start(self) -> None:
        """Begin to give signs of life and to look for those of others."""
        self._thread.start()

    def stop(self) -> None:
        """End, as when all are done."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * EVERY)

    def tell(self, *problems: str, how: How = How.FAILED) -> dict[str, Any]:
        """Tell all that this process ends, unless another has told so before; give what was told first.

        What all processes find alike, as a mistake in their recipe, the first of them tells. Where the store is gone,
        this one has told nobody, and gives what it would have.
        """
        try:
            until = time.monotonic() + 2
            while self.rank and time.monotonic() < until and self._told() is None:
                time.sleep(EVERY / 5)
            told = tell(self._store, self.rank, *problems, how=how)
        except Exception:  # of several kinds, as in the thread
            return {"rank": self.rank, "problems": [*problems], "how": how}
        self._say_heard()
        return told

    def let_hear(self) -> None:
        """Stay for a moment, where this process holds the store, until those that have come know why the run ends."""
        if self.rank or held_by_starter():
            return
        with suppress(Exception):  # where even the own store does not answer, nobody hears
            who = (self._told() or {}).get("rank")  # it knows, or it is gone
            others = [rank for rank in range(1, self.size) if rank != who and self._store.check([_name_of(rank)])]
            until = time.monotonic() + _HEARING
            while time.monotonic() < until and not all(self._store.check([_heard_by(rank)]) for rank in others):
                time.sleep(EVERY / 5)

    def who_is_gone(self, otherwise: str = "the connection to another rank broke, and none of them is gone") -> str:
        """Find out which process a broken connection was to.

        :param otherwise: What is to be said where none of them is gone.
        """
        with suppress(Exception):  # as below: then the store is gone as well, and is found to be by the thread
            self._store.set(_BROKEN, str(self.rank))
        until = time.monotonic() + SILENT + 5
        while time.monotonic() < until and self.lost is None:
            time.sleep(EVERY / 5)
        return self.lost or f"{otherwise}. {_GOES_ON}"

    def is_stopped_for_another(self) -> bool:
        """Find out at once whether this process was sent a signal because another has ended, and if so keep why.

        torchrun ends the others as soon as one of its machine has. One that ends of itself tells so before; so one that
        is gone without a word was killed.
        """
        with suppress(Exception):  # as below: then the store is gone, and nothing more is known
            told = self._told()
            gone = (rank for rank in range(self.size) if rank != self.rank and _is_gone(_process(self._store, rank)))
            if told is None and (rank := next(gone, None)) is not None:
                told = tell(self._store, rank, _GONE)
            if told is not None and told["rank"] != self.rank and told["how"] != How.STOPPED:
                self._heard(told)
                return True
        return False

    def _wait_for_all(self, seconds: float) -> None:
        names = [_name_of(rank) for rank in range(self.size)]
        left, looked = seconds, time.monotonic()
        while not self._store.check(names):
            now = time.monotonic()
            left, looked = left - min(now - looked, LOOK), now
            missing = [rank for rank, name in enumerate(names) if left < 0 and not self._store.check([name])]
            told = self.tell(_absent(missing, self.size, f"{seconds:.0f} seconds")) if missing else self._told()
            if told is not None and told["rank"] == self.rank:
                raise RankError(*told["problems"])
            if told is not None:
                raise RankError(self._heard(told))
            time.sleep(EVERY / 5)

    def _watch(self) -> None:
        watched: list[Watched] = []
        while not self._ended.wait(EVERY):
            try:
                self._store.add(f"alive {self.rank}", 1)
                watched = watched or [Watched(self._store, rank) for rank in self._neighbours()]
                gone = {one.rank: why for one in watched if (why := one.why_gone()) is not None}
                told = self._told()
            except Exception:  # of several kinds, by backend and version: whoever holds the store is gone
                told = _store_gone()
            else:
                for rank, why in gone.items():
                    told = tell(self._store, rank, why)
            if told is not None and told["rank"] != self.rank:
                self._end(told)
                return

    def _neighbours(self) -> set[int]:
        """Give the next process, and the next of this machine, of which the system tells more."""
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        here = _machine()
        near = (rank for rank in others if here is not None and _process(self._store, rank).get("machine") == here)
        return {*others[:1], *islice(near, 1)}

    def _told(self) -> dict[str, Any] | None:
        return json.loads(self._store.get(_FAILED)) if self._store.check([_FAILED]) else None

    def _end(self, told: dict[str, Any]) -> None:
        """End this process because another has ended, from wherever it is."""
        self._heard(told)
        taken = signal.getsignal(signal.SIGTERM)
        # Who waits for a process that is gone learns it from a broken connection, and who was sent a signal from that.
        if not self._ended.wait(_GRACE / 4) and not self.is_ending:
            self.has_interrupted = True
            _thread.interrupt_main(signal.SIGTERM if callable(taken) else signal.SIGINT)
        if not self._ended.wait(_GRACE):
            if self.speaks:
                print(f"ecoflap: {self.lost}", file=sys.stderr, flush=True)
            os._exit(2)

    def _heard(self, told: dict[str, Any]) -> str:
        """Keep why this process ends by another's doing, and whether it is this one that says so; give why."""
        self.speaks = self.rank == speaker_of(told) if told["rank"] is not None else _is_first_here()
        self.speaks = self.speaks and not self._is_read_already(told)
        self.lost = said_of(told, self.size)
        self._say_heard()
        return self.lost

    def _say_heard(self) -> None:
        """Say that this process knows why the run ends, to the one that holds the store: it may go."""
        with suppress(Exception):  # it has gone
            self._store.set(_heard_by(self.rank), "")

    def _is_read_already(self, told: Mapping[str, Any]) -> bool:
        """Say whether a process says why it has ended where this one would say it again, as on one terminal."""
        reader = _reader()
        if told["how"] != How.REFUSED or reader is None:
            return False
        with suppress(Exception):
            return bool(_process(self._store, told["rank"]).get("speaks_to") == reader)
        return False


class Watched:
    """Knows for how long one process has given no sign of life, and looks at it where it gives none."""

    def __init__(self, store: Store, rank: int) -> None:
        self.rank, self._store = rank, store
        self._signs, self._used = 0, ""
        self._silent, self._looked = 0.0, time.monotonic()

    def why_gone(self) -> str | None:
        """Say why the process is taken for gone; None where it is not."""
        signs, now = self._store.add(f"alive {self.rank}", 0), time.monotonic()
        self._silent = self._silent + min(now - self._looked, LOOK) if signs == self._signs else 0.0
        self._signs, self._looked = signs, now
        if self._silent <= SILENT:
            return None
        process, here = _process(self._store, self.rank), _machine()
        is_here = here is not None and process.get("machine") == here
        seen = _seen(process) if is_here else {}
        if seen is None:
            return _GONE
        if seen.get("state") == "T":  # by a debugger it would be "t", whose user looks at it
            return f"it is stopped, as SIGSTOP does it, and gave no sign of life for {SILENT:.0f} seconds"
        if is_here and seen["used"] != self._used:
            is_first, self._used = not self._used, seen["used"]
            self._silent = self._silent if is_first else 0.0
        may_live = is_here or (process and not self._store.check([_BROKEN]))
        limit = LONG if may_live else SILENT
        return f"there was no sign of life of it for {limit:.0f} seconds" if self._silent > limit else None


def _process(store: Store, rank: int) -> dict[str, Any]:
    """Give what a process has said that it is; nothing where it has not come so far."""
    key = _name_of(rank)
    found: dict[str, Any] = json.loads(store.get(key)) if store.check([key]) else {}
    return found


def _name_of(rank: int) -> str:
    """Name in the store what a process has said that it is; nothing is there until it has come."""
    return f"process {rank}"


def _heard_by(rank: int) -> str:
    """Name in the store that a process has heard why the run ends; nothing is there until it has."""
    return f"heard by {rank}"


def _absent(missing: list[int], size: int, limit: str) -> str:
    """Say which processes have not come, what may be the matter, and what to do."""
    several = len(missing) > 1
    return (
        f"rank{'s' * several} {first_of([str(rank) for rank in missing], 8)} of {size} {'have' if several else 'has'} "
        f"not come within {limit}: not started, or ended before, as where a machine has no ecoflap, cannot load what "
        f"--registry names, or was out of memory. See what was said there, mend it, and start all again"
    )


def this_process() -> dict[str, Any]:
    """Say which process this is: its number, when it began, and the machine on which that means something."""
    return {"machine": _machine(), "number": os.getpid(), "began": (_numbers_of(os.getpid()) or {}).get("began")}


def _reader() -> list[Any] | None:
    """Name the file, pipe or terminal that errors of this process go to; None where that cannot be told."""
    try:
        there = os.fstat(sys.__stderr__.fileno()) if sys.__stderr__ is not None else None
    except (OSError, ValueError):
        return None
    return None if there is None or _machine() is None else [_machine(), there.st_dev, there.st_ino]


def _machine() -> str | None:
    """Name this machine since it was started, and the container on it; None where the system names neither."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _seen(process: Mapping[str, Any]) -> dict[str, str] | None:
    """Give what the system tells of a process of this machine; None where it is gone."""
    found = _numbers_of(process["number"])
    is_there = found is not None and found["began"] == process["began"] and found["state"] not in ("Z", "X")
    return found if is_there else None


def _is_gone(process: Mapping[str, Any]) -> bool:
    """Say whether a process is known to be gone, which is known of those of this machine alone."""
    return _machine() is not None and process.get("machine") == _machine() and _seen(process) is None


def _numbers_of(process: int) -> dict[str, str] | None:
    """Read what Linux tells of a process: its state, the time it has used, and when it began."""
    try:
        # Linux cuts a process' name after so many bytes, also inside of a letter.
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = told[told.rindex(")") + 2 :].split()  # behind its name, in which anything may stand
    return {"state": fields[0], "used": f"{fields[11]} {fields[12]}", "began": fields[19]}


def tell(store: Store, rank: int, *problems: str, how: How = How.FOUND) -> dict[str, Any]:
    """Tell all processes that one has failed, unless that was told of another before; give what was told first.

    :param problems: Why it has.
    """
    line = json.dumps({"rank": rank, "problems": problems, "how": how})
    told: dict[str, Any] = json.loads(store.compare_set(_FAILED, "", line))
    return told


def speaker_of(told: dict[str, Any]) -> int | None:
    """Give the process that says to the user why a run ends; None where only the one that has failed does."""
    return 0 if told["rank"] else 1 if told["how"] == How.FOUND else None


def said_of(told: dict[str, Any], size: int) -> str:
    """Say in a sentence which process has ended a run, and why; and that it goes on, unless its user is to mend it."""
    text = "; ".join(told["problems"])
    who = f"rank {told['rank']} of {size} has ended this run" if told["rank"] is not None else "this run has ended"
    if told["how"] == How.REFUSED:
        return f"{who}: {text}"
    return f"{who}: {text}{'' if text.endswith(('.', '?', '!')) else '.'} {_GOES_ON}"


def _store_gone() -> dict[str, Any]:
    """Give what there is to tell where the store is gone: torchrun and ``--processes`` hold it, otherwise rank 0."""
    if held_by_starter():
        return {"rank": None, "problems": [_STARTER_GONE], "how": How.FOUND}
    return {"rank": 0, "problems": ["it does not answer any more"], "how": How.FOUND}


def held_by_starter() -> bool:
    """Say whether what has started the processes holds their store; otherwise the first of them does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _is_first_here() -> bool:
    """Say whether this is the first process of its machine; there may be no word from any other."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
