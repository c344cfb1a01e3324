"""Tells observers what a run does, and keeps in its folder what it took and what it warned of."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from time import perf_counter

from ecoflap.core.contracts.events import Event, Progress, Refined, StageFinished, StageStarted, Warned
from ecoflap.core.contracts.protocols import Note
from ecoflap.core.errors import EcoflapError
from ecoflap.core.record.clock import Clock
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.registry.observers import Observers
from ecoflap.core.text.printable import printable


class RunLog:
    """Passes on what a run says, to whoever listens and to its folder.

    :param observers: Hear every event. One that raises is switched off, which is itself a warning.
    """

    def __init__(self, folder: RunFolder, observers: Observers) -> None:
        self._folder, self._observers = folder, observers
        self._clock: Clock | None = None

    def emit(self, event: Event) -> None:
        """Tell an event; a warning is recorded too, and progress counts the time of the stage."""
        if isinstance(event, Warned):
            event = Warned(printable(event.message))
            self._folder.record_warning(event.message)
        if isinstance(event, Refined):
            self._folder.record_refined(asdict(event))
        if isinstance(event, Progress) and self._clock is not None:
            self._clock.tick()
        for message in self._observers(event):
            self.emit(Warned(message))

    def tell_only(self, event: Event) -> None:
        """Tell an event and record nothing of it, as when a run fails because its disk is full."""
        self._observers(event)

    def note(self, sentence: str) -> None:
        """Tell a note, which the run records as a warning."""
        self.emit(Warned(sentence))

    def note_of(self, part: str) -> Note:
        """Give a part what takes its notes; each is recorded behind the part's name."""
        return lambda sentence: self.note(f"{part}: {sentence}")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, also one that is interrupted, and tell when it begins and when it is done."""
        self.emit(StageStarted(name))
        started = perf_counter()
        self._clock = clock = Clock(name, self._folder)
        try:
            yield
        except BaseException:
            with suppress(EcoflapError):  # on a full disk this fails too, and says less
                clock.stop()
            raise
        finally:
            self._clock = None
        clock.stop()
        self.emit(StageFinished(name, perf_counter() - started))


class SilentLog(RunLog):
    """Takes what a process of a run says that is not the first of them: all of them say the same."""

    def emit(self, event: Event) -> None:
        """Say nothing."""

    def tell_only(self, event: Event) -> None:
        """Say nothing."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time nothing."""
        yield
