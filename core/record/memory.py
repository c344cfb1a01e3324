"""Watch how much memory this process holds that cannot be taken from it, while something is computed."""

import os
import re
from pathlib import Path
from threading import Event, Thread

from ecoflap.core.record.environment import peak_memory

_EVERY = 0.02
"""Seconds between two looks. What is held for less may be missed; a look takes some microseconds."""

_STATM = Path("/proc/self/statm")

MEASURED = "what cannot be evicted" if _STATM.is_file() else "resident, of files too"
"""What the figures are: pages of files can be read again, and the system takes them out of memory where it is short."""


class MemoryWatch:
    """Looks at the memory of this process again and again, in a thread of its own, from when it is made to ``stop``."""

    def __init__(self) -> None:
        self._most = 0
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def most(self) -> int:
        """Give the most bytes that were held at any look so far."""
        self._most = max(self._most, held())
        return self._most

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            self.most()


def held() -> int:
    """Give the bytes that this process holds now and that are in no file.

    Where the system does not tell them apart, it is the most that the process has held so far, files and all.
    """
    if not _STATM.is_file():
        return peak_memory()
    _, resident, in_files, *_ = map(int, _STATM.read_text().split())
    return (resident - in_files) * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int | None:
    """Give the bytes that the system could give to a new process; None where it does not tell."""
    told = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s*(\d+) kB", told.read_text(), re.MULTILINE) if told.is_file() else None
    return 1024 * int(found[1]) if found else None
