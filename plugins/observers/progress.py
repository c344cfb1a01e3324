"""The observer ``progress`` shows how far a run is: as a bar with the time left on a terminal, else as plain lines."""

from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ecoflap import hookimpl
from ecoflap.core.contracts.events import (
    Event,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)
from ecoflap.core.contracts.events import (
    Progress as ProgressEvent,
)
from ecoflap.core.text.numbers import time_text

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.fields[unit]}"),
    TimeElapsedColumn(),
    TextColumn("{task.fields[left]}"),
)

PLAIN_EVERY = 10.0
"""Seconds between two plain lines of one stage."""


_ALWAYS = frozenset(("load", "check"))
"""Stages of a run that has nothing left to do."""
_FINISHED = ": nothing is left to do, and what was found before is shown; --fresh begins anew"


class Progress:
    """Shows how far a run is. It writes to the standard error stream, so that results can be piped."""

    def __init__(self) -> None:
        # It asks for sys.stderr as it writes, which may be another by then. A part my:Key means no emoji.
        self._console = Console(stderr=True, emoji=False)
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._said = 0.0
        self._first: tuple[float, int] | None = None  # when the stage's first event came, and how much was done then

    @hookimpl
    def ecoflap_on_event(self, event: Event) -> None:
        """Show an event, or nothing of one that says nothing of progress."""
        match event:
            case RunStarted():
                self._say(f"run folder {event.folder}{_FINISHED if _ALWAYS.issuperset(event.stages) else ''}")
            case StageStarted():
                self._begin(event.stage)
            case ProgressEvent():
                self._advance(event)
            case StageFinished():
                self._close()
                self._say(f"{event.stage}: {event.seconds:.1f} s")
            case Warned():
                self._say(f"warning: {event.message}")
            case RunFailed() | RunFinished():
                self._close()

    def _begin(self, stage: str) -> None:
        self._close()
        self._said, self._first = monotonic(), None
        if self._console.is_terminal:
            self._bars = Bars(*COLUMNS, console=self._console, transient=True)
            self._task = self._bars.add_task(stage, total=None, unit="", left="")
            self._bars.start()
        else:
            self._say(f"{stage} …")

    def _advance(self, event: ProgressEvent) -> None:
        left = self._time_left(event)
        if self._bars is not None:
            counted = f"{event.done} of {event.total} {event.unit}"
            self._bars.update(self._task, completed=event.done, total=event.total, unit=counted, left=left)
        elif monotonic() - self._said > PLAIN_EVERY:
            self._said = monotonic()
            self._say(f"{event.stage}: {event.done} of {event.total} {event.unit}" + (f", {left}" if left else ""))

    def _time_left(self, event: ProgressEvent) -> str:
        """Estimate by what was done since the first event, in the time since then; before a second one say nothing.

        What the first event counts may be an earlier process's work, which took no time of this one.
        """
        if self._first is None:
            self._first = (monotonic(), event.done)
        began, done_before = self._first
        done = event.done - done_before
        if event.done == event.total or done <= 0:
            return ""
        return f"about {time_text((monotonic() - began) / done * (event.total - event.done))} left"

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
