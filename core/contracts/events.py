"""What observers hear of a run. Frozen facts; an observer cannot change the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class RunStarted:
    folder: Path
    stages: tuple[str, ...]


@dataclass(frozen=True)
class StageStarted:
    stage: str


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` in the current stage; what an earlier process finished counts as done."""

    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class LayerPruned:
    """``kept`` of ``size`` weights stay, of which ``zeros`` happen to be zero."""

    name: str
    kept: int
    size: int
    zeros: int
    seconds: float


@dataclass(frozen=True)
class Warned:
    message: str


@dataclass(frozen=True)
class StageFinished:
    stage: str
    seconds: float
    summary: str = ""


@dataclass(frozen=True)
class RunFinished:
    folder: Path
    report: Mapping[str, Any]


@dataclass(frozen=True)
class RunFailed:
    error: str


Event: TypeAlias = RunStarted | StageStarted | Progress | LayerPruned | Warned | StageFinished | RunFinished | RunFailed
