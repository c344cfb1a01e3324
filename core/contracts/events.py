"""What observers hear of a run. Frozen facts; an observer cannot change the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on; ``stages`` are those that are still to be done."""

    folder: Path
    stages: tuple[str, ...]


@dataclass(frozen=True)
class StageStarted:
    """A stage begins."""

    stage: str


@dataclass(frozen=True)
class Progress:
    """So many of the stage's units are done, those that an earlier process finished included."""

    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class LayerPruned:
    """A layer is pruned: ``kept`` of its ``size`` weights stay, of which ``zeros`` happen to be zero."""

    name: str
    kept: int
    size: int
    zeros: int
    seconds: float


@dataclass(frozen=True)
class Warned:
    """There is something that the user should know."""

    message: str


@dataclass(frozen=True)
class StageFinished:
    """A stage is done."""

    stage: str
    seconds: float
    summary: str = ""


@dataclass(frozen=True)
class RunFinished:
    """A run is done, or a finished one was exported once more.

    :param report: The ``ecoflap.core.record.report.Report`` that ``report.json`` holds; the file is there already. It
        is typed loosely, because a report is made of what parts give.
    """

    folder: Path
    report: Any


@dataclass(frozen=True)
class RunFailed:
    """A run ends with an error; what it finished before is taken up by the next one in its folder."""

    error: str


Event: TypeAlias = RunStarted | StageStarted | Progress | LayerPruned | Warned | StageFinished | RunFinished | RunFailed
