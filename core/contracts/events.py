"""What observers hear of a run. Frozen facts; an observer cannot change the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class RunStarted:
    """A run begins or goes on, or its model is exported once more; ``stages`` are those still to be done."""

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
class Refined:
    """A refiner has trained the kept weights of a block, or of the model; or a pruner has mended a block's layers.

    :param name: The block's name, or ``the model``.
    :param before: Its objective before, a share of what was to be kept: on ``training`` batches, and on those that were
        ``held_out``. A pruner that mends another one's choice, as ``refit`` does, looks at all of them: it has the mean
        over the layers under ``training``, and nothing held out.
    :param after: The same afterwards; empty where weights were NaN or infinite.
    :param is_kept: False where it was worse on held-out batches, or in every layer, or where nothing could be better:
        the weights are what they were before.
    :param seconds: It took so long; a pruner with what it mends.
    :param number: Which of the refiners of that block, or of the model, it is, from 0: two may be alike. None of a
        pruner.
    """

    name: str
    refiner: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    is_kept: bool
    seconds: float
    number: int | None


@dataclass(frozen=True)
class Warned:
    """There is something that the user should know."""

    message: str


@dataclass(frozen=True)
class StageFinished:
    """A stage is done."""

    stage: str
    seconds: float


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


Event: TypeAlias = (
    RunStarted | StageStarted | Progress | LayerPruned | Refined | Warned | StageFinished | RunFinished | RunFailed
)
