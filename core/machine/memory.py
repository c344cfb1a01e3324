"""Watch how much memory this process holds that cannot be taken from it, while something is computed."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread

from ecoflap.core.machine.environment import peak_memory

_EVERY = 0.02
"""Seconds between two looks. What is held for less may be missed; a look takes some microseconds."""

_STATM = Path("/proc/self/statm")

MEASURED = "what cannot be evicted" if _STATM.is_file() else "resident, of files too"
"""What the figures are: pages of files can be read again, and the system takes them out of memory where it is short."""


_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""The files of a control group, of version 2 and of 1, with its limit, what it holds, and the count of the latter that
can be taken away."""


class MemoryWatch:
    """Looks at the memory of this process again and again, in a thread of its own, from when it is made to ``stop``."""

    def __init__(self) -> None:
        self._most = 0
        self._lock = Lock()
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def most(self) -> int:
        """Give the most bytes that were held at any look so far."""
        now = held()
        with self._lock:  # it is asked for in two threads
            self._most = max(self._most, now)
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
    """Give the bytes that the system could give to a new process here; None where it does not tell.

    Where a control group holds the process to less than the machine has, as in a container, that is what counts.
    """
    told = Path("/proc/meminfo")
    found = re.search(r"^MemAvailable:\s*(\d+) kB", told.read_text(), re.MULTILINE) if told.is_file() else None
    return min([1024 * int(found[1]), *left_in_groups()]) if found else None


def left_in_groups(told: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield what each control group around this process still lets it have.

    :param told: Says which groups those are.
    :param mounted: Where their files are, of either version.
    """
    for line in told.read_text().splitlines() if told.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root, inner = mounted / controllers, Path(path.lstrip("/"))
            yield from filter(None, (_left_in(root / group) for group in (inner, *inner.parents)))


def _left_in(group: Path) -> int | None:
    """Give what a group's limit leaves; files that the system would take out of memory do not count as held."""
    for limit, usage, reclaimable in _GROUP_FILES:
        with suppress(OSError):  # of a group without a limit there may be no such files
            if (most := (group / limit).read_text().strip()).isdigit():
                files = re.search(rf"^{reclaimable} (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
                held_now = int((group / usage).read_text()) - (int(files[1]) if files else 0)
                return max(1, int(most) - held_now)
    return None
