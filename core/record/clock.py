"""Tell a run's folder what a stage takes, while it goes on."""

from time import perf_counter

from ecoflap.core.machine.memory import MemoryWatch
from ecoflap.core.record.folder import RunFolder


class Clock:
    """Tells the folder what a stage takes while it goes on, so that a killed process's time counts too."""

    # Seconds: a killed process loses at most this much of its time. Each record is a line that is flushed to the disk.
    EVERY = 5.0

    def __init__(self, stage: str, folder: RunFolder) -> None:
        self._stage, self._folder, self._told = stage, folder, perf_counter()
        self._memory = MemoryWatch()

    def tick(self) -> None:
        """Record the time since the last record, if that was more than ``EVERY`` seconds ago."""
        if perf_counter() - self._told > self.EVERY:
            self._tell()

    def stop(self) -> None:
        """Record the time since the last record, and the most memory that this process has held in the stage."""
        self._memory.stop()
        self._tell()

    def _tell(self) -> None:
        seconds, self._told = perf_counter() - self._told, perf_counter()
        self._folder.record_stage(self._stage, seconds, self._memory.most())
