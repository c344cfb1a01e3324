"""Every event of a run as a line of ``log.jsonl`` in its folder."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from ecoflap import hookimpl
from ecoflap.core.contracts.events import Event, Progress, RunFinished, RunStarted
from ecoflap.core.disk.whole_files import append_line


class LogFile:
    """Progress is left out: each score and each pruned layer is in the folder anyway."""

    def __init__(self) -> None:
        self._path: Path | None = None

    @hookimpl
    def ecoflap_on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._path = event.folder / "log.jsonl"
        if self._path is None or isinstance(event, Progress):
            return
        facts = {} if isinstance(event, RunFinished) else asdict(event)
        said = {key: str(value) if isinstance(value, Path) else value for key, value in facts.items()}
        append_line(self._path, {"time": datetime.now(UTC).isoformat(), "event": type(event).__name__, **said})
