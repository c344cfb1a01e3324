"""Make the report of a run that comes to its end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import ValidationError

from ecoflap.core.errors import RunError
from ecoflap.core.machine.environment import machine
from ecoflap.core.machine.memory import MEASURED
from ecoflap.core.planning.plan import Plan
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.manifest import Manifest
from ecoflap.core.record.report import Report
from ecoflap.core.sealing.validation import wrong_places


@dataclass(frozen=True)
class Outcome:
    """Holds what a run came to beside its plan.

    :param parameters: How many the whole model has.
    :param nonzeros: How many weights of the planned layers are not zero.
    :param measures: By stage (``dense``, ``pruned``) and name, as ``evaluations.jsonl`` holds them.
    :param bytes: Of the weights in ``model/`` and, by name, in each export.
    :param exports: The exports' manifests by name.
    :param device: Where the model's blocks ran.
    :param computed_in: The type of the model's products.
    :param versions: Of Python, and of the distributions whose code has run.
    """

    parameters: int
    nonzeros: int
    measures: Mapping[str, Mapping[str, Any]]
    bytes: Mapping[str, int]
    exports: Mapping[str, Manifest]
    device: str
    computed_in: torch.dtype
    versions: Mapping[str, str]


def make_report(folder: RunFolder, recipe: Recipe, plan: Plan, outcome: Outcome) -> Report:
    """Put together the report of a finished run.

    :param folder: Where its stages and warnings are recorded.
    """
    plain = {
        "version": 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe.plain(),
        "parameters": outcome.parameters,
        "prunable": plan.size,
        "kept": plan.keep,
        "kept_zeros": plan.keep - outcome.nonzeros,
        "sparsity": plan.sparsity,
        "towers": plan.sparsity_by_tower(),
        "groups": {name: asdict(group) for name, group in plan.groups.items()},
        "blocks": _blocks(plan),
        "measures": outcome.measures,
        "bytes": outcome.bytes,
        "stages": folder.stages(),
        "warnings": folder.warnings(),
        "machine": {**machine(outcome.device, outcome.computed_in), "memory": MEASURED},
        "versions": dict(outcome.versions),
        "exports": {name: manifest.model_dump(mode="json") for name, manifest in outcome.exports.items()},
        "lines": folder.last_seals(),
        "refined": folder.refined(),
        "tokens": plan.tokens,
    }
    try:
        # By way of JSON, so that a report in memory equals the one that is read back.
        return Report.model_validate_json(json.dumps(plain, allow_nan=False))
    except ValidationError as error:  # a file that it was put together from has been tampered with
        places = (f"{folder.path}: the report cannot be written: {place}." for place in wrong_places(error))
        raise RunError(*(f"{place} Begin the run anew with --fresh" for place in places)) from error


def _blocks(plan: Plan) -> dict[str, dict[str, Any]]:
    blocks: dict[str, dict[str, Any]] = {}
    for layer in plan.layers.values():
        block = blocks.setdefault(layer.block, {"tower": layer.tower, "size": 0, "keep": 0})
        block["size"] += layer.size
        block["keep"] += layer.keep
    return blocks
