"""Write where the time of a run went, stage by stage: by file of ecoflap or by library, and by function.

What is before, between and behind the stages is told in seconds alone. Who goes on with a run adds to what is there.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from cProfile import Profile
from datetime import UTC, datetime
from pathlib import Path
from pstats import Stats
from time import perf_counter
from typing import Any, NamedTuple

import ecoflap
from ecoflap.core.contracts.events import Event, RunFailed, RunFinished, RunStarted, StageFinished, StageStarted
from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.record.folder import RunFolder

_ROWS = 15
"""How many files and functions a stage is told by: the rest is a few hundredths of it."""

_PACKAGE = Path(ecoflap.__file__).parent
_ROOMS = ("core", "plugins", "adapters", "exporters")
_OURS = {(_PACKAGE / room).resolve(): f"ecoflap/{room}" for room in _ROOMS} | {_PACKAGE.resolve(): "ecoflap"}
"""What lies in each folder of ours: in a checkout rooms are links to folders beside the environment's libraries."""


class _Called(NamedTuple):
    """Holds what a profile knows of a function.

    :param own: Seconds in it.
    :param whole: Seconds in it and in all that it called.
    """

    file: str
    name: str
    calls: int
    own: float
    whole: float


class StageProfiles:
    """Hears the events of a run, and profiles each of its stages. Only the thread that the run is in is looked at.

    :param began: When the process did, as :func:`process_began` says.
    """

    def __init__(self, began: float) -> None:
        self._folder: RunFolder | None = None
        self._running: Profile | None = None
        self._began = 0.0
        self._ended = began  # the last stage, or what was before the first
        self._gaps: list[float] = []
        self._pages: list[str] = []
        self._number = 0

    def __call__(self, event: Event) -> None:
        """Begin with a stage, and write what is known when it is done, or when the run fails in it."""
        if isinstance(event, RunStarted):
            self._folder = folder = RunFolder(event.folder)
            self._number = _next_number(folder.profiles)
            self._pages = [*_pages_of(folder.profile), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"]
        elif isinstance(event, StageStarted):
            self._stop("")
            self._gaps.append(perf_counter() - self._ended)
            if len(self._gaps) == 1:
                self._add(f"before the first stage: {self._gaps[0]:.2f} s")
            self._running, self._began = Profile(), perf_counter()
            self._running.enable()
        elif isinstance(event, StageFinished):
            self._stop(event.stage)
        elif isinstance(event, RunFailed):
            self._stop("the stage that failed")
        elif isinstance(event, RunFinished):
            behind = perf_counter() - self._ended
            self._add(f"between stages: {sum(self._gaps[1:]):.2f} s\nafter the last stage: {behind:.2f} s")

    def _stop(self, stage: str) -> None:
        profile, self._running = self._running, None
        if profile is None:
            return
        profile.disable()
        self._ended = perf_counter()
        if self._folder is None or not stage:
            return
        folder = self._folder.profiles
        folder.mkdir(exist_ok=True)
        profile.dump_stats(folder / f"{self._number:02d}-{stage.replace(' ', '-')}.prof")
        self._number += 1
        self._add("\n".join(page(stage, self._ended - self._began, Stats(profile))))

    def _add(self, text: str) -> None:
        if self._folder is not None:
            self._pages.append(text)
            write_whole(self._folder.profile, "\n\n".join(self._pages) + "\n")


def process_began() -> float:
    """Say when this process began, as ``perf_counter`` counts; where the system does not tell, it is now."""
    try:
        told = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return perf_counter()
    ticks = int(told[told.rindex(")") + 2 :].split()[19])  # behind its name, in which anything may stand
    return perf_counter() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _pages_of(file: Path) -> Iterator[str]:
    """Yield what an earlier process has written."""
    if file.is_file():
        yield file.read_text(encoding="utf-8", errors="replace").rstrip("\n")


def _next_number(folder: Path) -> int:
    """Give the number behind those of the files that are there."""
    numbers = (file.name.partition("-")[0] for file in folder.glob("*.prof"))
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)


def page(stage: str, seconds: float, stats: Any) -> Iterator[str]:
    """Tell a stage's time by file and by function, a line each.

    What torch does for a watcher of its own dispatch, as while the adapter is checked, is told of that watcher alone.
    """
    called = [_called(*one) for one in stats.stats.items()]
    yield f"{stage}: {seconds:.2f} s"
    by_file: Counter[str] = Counter()
    for one in called:
        by_file[one.file] += one.own  # type: ignore[assignment] # a Counter takes any number
    yield "     own s"
    yield from (f"{own:10.2f}  {file}" for file, own in by_file.most_common(_ROWS) if own >= 0.005)
    ours = sorted((one for one in called if one.file.startswith("ecoflap/")), key=lambda one: -one.whole)
    yield "   whole s      own s      calls"
    yield from (f"{one.whole:10.2f} {one.own:10.2f} {one.calls:10}  {one.file} {one.name}" for one in ours[:_ROWS])


def _called(place: tuple[str, int, str], figures: tuple[int, int, float, float, Mapping[Any, Any]]) -> _Called:
    path, _, name = place
    return _Called(_home_of(path, name), name, figures[1], figures[2], figures[3])


def _home_of(path: str, name: str) -> str:
    """Name a file of ecoflap by its path in it, and of anything else the library."""
    if path == "~":  # a function that is not Python's
        return "torch, compiled" if "torch" in name else "Python, compiled"
    file = Path(path).resolve()
    for folder, room in _OURS.items():
        if file.is_relative_to(folder):
            return f"{room}/{file.relative_to(folder).as_posix()}"
    parts = file.parts
    return parts[parts.index("site-packages") + 1] if "site-packages" in parts else "Python"
