"""The file ``plan.json``, read back: whatever is wrong in it is told with its place."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from ecoflap.core.errors import RunError
from ecoflap.core.pruning.plan import Plan, PlannedGroup, PlannedLayer
from ecoflap.core.text.validation import wrong_places


class _Contents(BaseModel):
    """What a plan is made of; the file also has sums over it, for those who read it."""

    version: Literal[1]
    layers: dict[str, PlannedLayer]
    groups: dict[str, PlannedGroup]


def read_plan(path: Path) -> Plan:
    """Read a ``plan.json``.

    :raises RunError: Where it cannot be read, or is no plan that this version wrote: with each place in it.
    """
    try:
        found = _Contents.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. {_WAY_OUT}") from error
    except ValidationError as error:
        raise RunError(*(f"{path}: {place}. {_WAY_OUT}" for place in wrong_places(error))) from error
    return Plan(found.layers, found.groups)


_WAY_OUT = "Restore the file, or begin the run anew with --fresh"
