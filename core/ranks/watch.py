"""Each process of a run says again and again that it is there, and hears when another is not, or has failed.

A collective of torch waits for all processes, with gloo until a connection breaks and with nccl for as long as its time
limit is. This tells within a minute that one is gone, and which, whatever the others are waiting in.
"""

import _thread
import json
import os
import signal
import sys
import time
from threading import Event, Thread
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

EVERY = 0.5
"""Seconds between two signs of life."""
SILENT = 30.0
"""Seconds without one after which a process is taken for gone."""
_GRACE = 10.0
"""Seconds that a process has to end by itself when another has failed; it may be waiting in a device's library."""
_FAILED = "failed"


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

    def start(self) -> None:
        """Begin to give signs of life, and to look for those of others."""
        self._thread.start()

    def stop(self) -> None:
        """End, as when all are done."""
        self._ended.set()
        self._thread.join(2 * EVERY)

    def tell(self, text: str) -> dict[str, Any]:
        """Tell all that this process ends with an error, unless another has told so before; give what was told first.

        What all processes find alike, as a mistake in their recipe, the first of them tells.
        """
        if self.rank:
            until = time.monotonic() + 2
            while time.monotonic() < until and self._told() is None:
                time.sleep(EVERY / 5)
        return tell(self._store, self.rank, text, by_itself=True)

    def who_is_gone(self, error: RuntimeError) -> str:
        """Find out which process a broken connection was to."""
        until = time.monotonic() + SILENT + 5
        while time.monotonic() < until and self.lost is None:
            time.sleep(EVERY / 5)
        return self.lost or f"the connection to another rank broke: {error}"

    def _watch(self) -> None:
        watched, seen, at = (self.rank + 1) % self.size, 0, time.monotonic()
        while not self._ended.wait(EVERY):
            try:
                self._store.add(f"alive {self.rank}", 1)
                now, told = self._store.add(f"alive {watched}", 0), self._told()
            except Exception:  # of several kinds, by backend and version: whoever holds the store is gone
                told = {"rank": 0, "text": "it does not answer any more", "by_itself": False}
            else:
                if now != seen:
                    seen, at = now, time.monotonic()
                elif time.monotonic() - at > SILENT:
                    told = tell(self._store, watched, f"there was no sign of life of it for {SILENT:.0f} seconds")
            if told is not None and told["rank"] != self.rank:
                self._end(told)
                return

    def _told(self) -> dict[str, Any] | None:
        return json.loads(self._store.get(_FAILED)) if self._store.check([_FAILED]) else None

    def _end(self, told: dict[str, Any]) -> None:
        """End this process because another has ended, from wherever it is."""
        speaker = 0 if told["rank"] else None if told["by_itself"] else 1
        self.speaks = self.rank == speaker
        self.lost = said_of(told, self.size)
        taken = signal.getsignal(signal.SIGTERM)
        # Who waits for a process that is gone learns it from a broken connection, and who was sent a signal from that.
        if not self._ended.wait(_GRACE / 4) and not self.is_ending:
            self.has_interrupted = True
            _thread.interrupt_main(signal.SIGTERM if callable(taken) else signal.SIGINT)
        if not self._ended.wait(_GRACE):
            if self.speaks:
                print(f"ecoflap: {self.lost}", file=sys.stderr, flush=True)
            os._exit(2)


def tell(store: Store, rank: int, text: str, *, by_itself: bool = False) -> dict[str, Any]:
    """Tell all processes that one has failed, unless that was told of another before; give what was told first.

    :param by_itself: Whether it is that process that tells it, and its user too.
    """
    line = json.dumps({"rank": rank, "text": text, "by_itself": by_itself})
    told: dict[str, Any] = json.loads(store.compare_set(_FAILED, "", line))
    return told


def said_of(told: dict[str, Any], size: int) -> str:
    """Say in a sentence which process has ended a run, and why."""
    text = told["text"].rstrip(".")
    return f"rank {told['rank']} of {size} has ended this run: {text}. The same command goes on from where it was"
