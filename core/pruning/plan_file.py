"""The file ``plan.json``, read back: whatever is wrong in it is told with its place."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ecoflap.core.disk.validation import read_validated
from ecoflap.core.errors import RunError
from ecoflap.core.pruning.plan import Plan, PlannedGroup, PlannedLayer


class _Contents(BaseModel):
    """What a plan is made of; the file also has sums over it, for those who read it."""

    model_config = ConfigDict(strict=True)
    version: Literal[1]
    layers: dict[str, PlannedLayer]
    groups: dict[str, PlannedGroup]


def read_plan(path: Path) -> Plan:
    """Read a ``plan.json``.

    :raises RunError: Where it cannot be read, or is no plan that this version wrote: with each place in it.
    """
    found = read_validated(path, _Contents, RunError, "Restore the file, or begin the run anew with --fresh")
    return Plan(found.layers, found.groups)
