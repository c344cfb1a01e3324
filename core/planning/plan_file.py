"""The file ``plan.json``, which knows the scores that it was made by: what is wrong in it is told with its place."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ecoflap.core.contracts.records import TokenChoice
from ecoflap.core.errors import RunError
from ecoflap.core.planning.plan import Plan, PlannedGroup, PlannedLayer
from ecoflap.core.planning.scores import Scores, read_scores
from ecoflap.core.sealing.sealed_lines import has_seal, last_seal
from ecoflap.core.sealing.sealed_text import write_sealed_json
from ecoflap.core.sealing.validation import read_validated

_WAY_OUT = "Restore the file, or begin the run anew with --fresh"


class _Contents(BaseModel):
    """What a plan is made of; the file also has sums over it, for those who read it.

    :param scores: The seal of the last line of the scores that it was made by; empty where there were none.
    """

    model_config = ConfigDict(strict=True)
    version: Literal[1]
    layers: dict[str, PlannedLayer]
    groups: dict[str, PlannedGroup]
    scores: str
    tokens: TokenChoice | None = None


def write_plan(path: Path, plan: Plan, kept_whole: Mapping[str, int], scores: Path) -> None:
    """Write a ``plan.json``.

    :param kept_whole: How many parameters no budget is about, by reason.
    :param scores: The file of the scores, which need not be there.
    """
    write_sealed_json(path, {**plan.dump(), "kept_whole": dict(kept_whole), "scores": last_seal(scores)})


def read_plan(path: Path) -> Plan:
    """Read a ``plan.json``.

    :raises RunError: Where it cannot be read, or is no plan that this version wrote: with each place in it.
    """
    found = _read(path)
    return Plan(found.layers, found.groups, found.tokens)


def read_scores_of(plan: Path, scores: Path, way_out: str = _WAY_OUT) -> Scores:
    """Read the scores of a run, and hold them to its plan, where there is one yet.

    :param way_out: What can be done about those of a run that is not the one at work.
    :raises RunError: Where there are none, a line is not what was written, or the last ones are gone.
    """
    found = read_scores(scores)
    if plan.is_file() and not has_seal(scores, _read(plan, way_out).scores):
        raise RunError(f"{scores}: its last lines are gone, which {plan.name} knows. {way_out}")
    return found


def check_scores_of(plan: Path, scores: Path) -> None:
    """Refuse scores that are not those which a plan was made by; one that looked at none has none.

    :raises RunError: Where they are gone too: going on needs them no more, and yet they are not what was written.
    """
    if os.path.lexists(scores):
        read_scores_of(plan, scores)
    elif _read(plan).scores:
        raise RunError(f"{scores} is missing, which {plan.name} knows. {_WAY_OUT}")


def _read(path: Path, way_out: str = _WAY_OUT) -> _Contents:
    return read_validated(path, _Contents, RunError, way_out)
