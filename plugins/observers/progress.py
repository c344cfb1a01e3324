"""Progress for whoever waits: a bar with the time left on a terminal, plain lines elsewhere."""

import sys
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ecoflap import hookimpl
from ecoflap.core.events import (
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from ecoflap.core.events import (
    Progress as ProgressEvent,
)

PLAIN_EVERY = 10.0
"""Seconds between two plain lines of one stage."""


class Progress:
    """Writes to the standard error stream, so that results can be piped."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage_began = self._said = 0.0
        self._first_done = 0

    @hookimpl
    def ecoflap_on_event(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._console = Console(stderr=True, file=sys.stderr)
                self._console.print(f"run folder {event.folder}", highlight=False, soft_wrap=True)
            case StageStarted():
                self._stage_began, self._said, self._first_done = monotonic(), monotonic(), -1
                if not self._console.is_terminal:
                    self._say(f"{event.stage} …")
            case ProgressEvent():
                self._advance(event)
            case StageFinished():
                self._close()
                self._say(f"{event.stage}: {event.seconds:.1f} s")
            case Warned():
                self._say(f"warning: {event.message}")
            case RunFailed() | RunFinished():
                self._close()

    def _advance(self, event: ProgressEvent) -> None:
        if self._first_done < 0:
            self._first_done = event.done
        if self._console.is_terminal:
            self._bar(event)
        elif monotonic() - self._said > PLAIN_EVERY:
            self._said = monotonic()
            self._say(f"{event.stage}: {event.done} of {event.total} {event.unit}, {self._time_left(event)}")

    def _time_left(self, event: ProgressEvent) -> str:
        done = event.done - self._first_done
        if done <= 0:
            return "time left unknown"
        left = (monotonic() - self._stage_began) / done * (event.total - event.done)
        return f"about {left:.0f} s left"

    def _bar(self, event: ProgressEvent) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(event.unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task(event.stage, total=event.total, completed=event.done)
        elif self._task is not None:
            self._bars.update(self._task, completed=event.done)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
