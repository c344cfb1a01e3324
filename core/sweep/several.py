"""Do the runs of a sweep in several processes at once, each run in a process of its own as the command does it."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import TypeVar

from ecoflap.core.cores import usable_cores
from ecoflap.core.ranks.launch import how_ended
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.sweep.failures import failure_in
from ecoflap.core.sweep.request import SweepRequest
from ecoflap.core.text.printable import printable

Job = TypeVar("Job")
MENDABLE = 2
"""The code of a command that has failed of what its user can mend."""
STOPPED = "stopped"
"""Said of a run in the place of what it has failed of, where Ctrl-C or SIGTERM has ended it, as they end a sweep."""
_STOPPED_WITH = frozenset(code for number in (signal.SIGINT, signal.SIGTERM) for code in (128 + number, -number))
_STARTS = ".starting-"
"""Begins the name of a folder in the sweep's, through which a run is given its recipe and tells what it failed of."""


class Runners:
    """Starts runs as processes of their own, of which so many are under way at a time, each on a GPU if there are some.

    :param request: Says how many, and what each of them is allowed.
    """

    def __init__(self, request: SweepRequest) -> None:
        self._request = request
        self._places: SimpleQueue[int] = SimpleQueue()
        for place in range(request.processes):
            self._places.put(place)
        self._running: set[subprocess.Popen[str]] = set()
        self._is_stopped = False
        self._lock = threading.Lock()

    def run(self, recipe: Recipe, folder: Path) -> str:
        """Do one run, and return what went wrong; empty where nothing did."""
        place = self._places.get()
        try:
            with TemporaryDirectory(prefix=_STARTS, dir=folder.parent) as own:
                file, failure = Path(own) / "recipe.yaml", Path(own) / "failure"
                file.write_text(recipe.dump(), encoding="utf-8")
                process = self._started(file, folder, failure, place)
                return STOPPED if process is None else self._ended(process, failure)
        finally:
            self._places.put(place)

    def stop(self) -> None:
        """End what is under way, and begin nothing more; it goes on with the next sweep."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()

    def _started(self, file: Path, folder: Path, failure: Path, place: int) -> subprocess.Popen[str] | None:
        """Start a run; None where all of them are to end."""
        request = self._request
        registry = [] if request.registry is None else ["--registry", str(request.registry)]
        options = [*["--allow-code"] * request.allow_code, *["--accept-change"] * request.accept_change, *registry]
        places = [str(file), "--folder", str(folder), "--failure", str(failure)]
        command = [sys.executable, "-P", "-m", "ecoflap", "run", *places, *options]
        environment = _environment(place, request.processes)
        with self._lock:
            if self._is_stopped:
                return None
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,  # into which nothing is written: the run ends where it is closed
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._running.add(process)
        return process

    def _ended(self, process: subprocess.Popen[str], failure: Path) -> str:
        assert process.stderr is not None  # for mypy
        with process:  # and by no communicate(), which would close what the run watches
            said = process.stderr.read()
        with self._lock:
            self._running.discard(process)
        if process.returncode == 0:
            return ""
        told = failure_in(failure)
        if told and process.returncode != MENDABLE:  # it said a traceback, which a run in this process prints
            print(printable(said), file=sys.stderr, end="", flush=True)
        return told or _why_ended(process.returncode, said)


def at_once(
    jobs: Sequence[Job],
    count: int,
    do: Callable[[Job], str],
    waits: Callable[[Job, Sequence[Job]], bool],
    stop: Callable[[], None],
) -> Iterator[tuple[Job, str]]:
    """Do jobs, so many at a time, and yield each as it ends, with what went wrong.

    :param do: Is called in a thread of its own.
    :param waits: Says whether a job is to wait for one of those that are under way, whose results it can take over.
    :param stop: Ends what is under way, where this is ended: the pool waits for its threads.
    """
    left, running = list(jobs), dict[Future[str], Job]()
    with ThreadPoolExecutor(count) as pool:
        try:
            while left or running:
                for job in list(left):
                    if len(running) < count and not waits(job, list(running.values())):
                        left.remove(job)
                        running[pool.submit(do, job)] = job
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield running.pop(future), future.result()
        finally:
            stop()


def delete_left(folder: Path) -> None:
    """Delete what a sweep that was killed has left in its folder of runs under way, which have ended with it."""
    for left in folder.glob(f"{_STARTS}*"):
        shutil.rmtree(left, ignore_errors=True)


def _why_ended(code: int, said: str) -> str:
    """Say how a run has ended that has not said what it failed of.

    :param said: What it wrote to stderr: its progress, and behind that maybe the reason.
    """
    if code in _STOPPED_WITH:
        return STOPPED
    lines = said.split("\n") if code != -signal.SIGKILL else []  # which leaves no time for a reason
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how_ended(code)}; it said last: {last}" if last else how_ended(code)


def _environment(place: int, count: int) -> dict[str, str]:
    """Give each process at a time its share of the cores, and a GPU of its own where there are some."""
    from torch.cuda import device_count

    found = {"OMP_NUM_THREADS": str(max(1, usable_cores() // count)), **os.environ}
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    devices = named or [str(number) for number in range(device_count())]
    return found | ({"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {})
