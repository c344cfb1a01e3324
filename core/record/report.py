"""What a run came to, as data and as a page."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.pruning.plan import Plan
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.record.environment import machine, versions
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.report.run_page import page


def make_report(
    folder: RunFolder,
    recipe: Recipe,
    plan: Plan,
    parameters: int,
    nonzeros: int,
    measures: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    device: str,
) -> dict[str, Any]:
    """Everything that is known of a finished run; ``report.json`` holds it.

    :param parameters: Of the whole model.
    :param nonzeros: Among the planned layers' weights.
    :param sizes: Bytes of the weights in ``model/`` and in each export.
    """
    planned = plan.dump()
    return {
        "version": 1,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": recipe.plain(),
        "parameters": parameters,
        "prunable": plan.size,
        "kept": plan.keep,
        "kept_zeros": plan.keep - nonzeros,
        "sparsity": planned["sparsity"],
        "towers": planned["towers"],
        "groups": planned["groups"],
        "blocks": blocks_planned(planned),
        "measures": measures,
        "bytes": sizes,
        "stages": folder.stages(),
        "warnings": folder.warnings(),
        "machine": machine(device),
        "versions": versions(),
    }


def write_report(folder: RunFolder, report: Mapping[str, Any]) -> None:
    """``report.html`` first: a run with a ``report.json`` is finished."""
    write_whole(folder.path / "report.html", page(folder.path.name, report))
    write_whole(folder.report, json.dumps(report, indent=1, allow_nan=False))


def is_scored(report: Mapping[str, Any]) -> bool:
    """Whether the run looked at scores; a recipe may have a scorer that nothing asked."""
    return any(group["score"] is not None for group in report["groups"].values())


def method_of(report: Mapping[str, Any]) -> str:
    """``zeroth_order → ecoflap → wanda``, as far as the run used them."""
    recipe = report["recipe"]
    names = [recipe["score"]["use"]] if is_scored(report) else []
    return " → ".join([*names, recipe["allocate"]["use"], recipe["prune"]["use"]])


def blocks_planned(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a plan as it is stored: each block's tower, size and how many weights it keeps.

    Groups may be layers or towers; blocks are what runs can be compared by.
    """
    blocks: dict[str, dict[str, Any]] = {}
    for layer in plan["layers"].values():
        block = blocks.setdefault(layer["block"], {"tower": layer["tower"], "size": 0, "keep": 0})
        block["size"] += layer["size"]
        block["keep"] += layer["keep"]
    return blocks
