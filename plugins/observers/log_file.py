"""The observer ``log_file`` writes each event of a run as a line of ``log.jsonl`` into its folder."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ecoflap import hookimpl
from ecoflap.core.contracts.events import Event, Progress, RunFinished, RunStarted
from ecoflap.core.sealing.sealed_lines import append_line


class LogFile:
    """Writes the log. Progress is left out: each score and each pruned layer is in the folder anyway."""

    def __init__(self) -> None:
        self._path: Path | None = None

    @hookimpl
    def ecoflap_on_event(self, event: Event) -> None:
        """Write a line; what comes before a run begins has no folder and is left out."""
        if isinstance(event, RunStarted):
            self._path = event.folder / "log.jsonl"
        if self._path is None or isinstance(event, Progress):
            return
        facts = {} if isinstance(event, RunFinished) else asdict(event)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
        append_line(self._path, {"time": datetime.now(UTC).isoformat(), "event": type(event).__name__, **plain})
