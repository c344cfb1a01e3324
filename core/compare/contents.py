"""Tell apart what runs have read under one name: the model, the calibration data, and what they were evaluated on."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from ecoflap.core.record.evaluations import files_read
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.identity import CALIBRATION_DATA, SCORING_DATA
from ecoflap.core.record.report import Report

DRAWN = {CALIBRATION_DATA: "calibration", SCORING_DATA: "score"}
"""Fingerprints of samples as a run names them (``RunData.fingerprints``), each with the recipe's key that draws them. A
seed draws others, so that they may be held beside each other only where seeds are the same."""


class _Content(NamedTuple):
    """Holds what a run has read.

    :param what: As it is told.
    :param asked: What the recipe says of it: where that is the same in two runs, the contents should be too.
    """

    what: str
    asked: str
    digest: str


def unlike_contents(runs: Sequence[tuple[RunFolder, Report]]) -> list[dict[str, str]]:
    """Give what each run has read, in eight digits, where a run whose recipe says the same has read something else."""
    read = [list(_contents(folder, report.recipe.plain())) for folder, report in runs]
    digests: dict[tuple[str, str], set[str]] = {}
    for what, asked, digest in (one for contents in read for one in contents):
        digests.setdefault((what, asked), set()).add(digest)
    return [
        {f"contents of the {what}": digest for what, asked, digest in contents if len(digests[what, asked]) > 1}
        for contents in read
    ]


def without_drawn(contents: dict[str, str]) -> dict[str, str]:
    """Leave out what another seed draws anew: by it runs of several seeds cannot be told to be unlike."""
    drawn = {f"contents of the {what}" for what in DRAWN}
    return {key: digest for key, digest in contents.items() if key not in drawn}


def _contents(folder: RunFolder, recipe: dict[str, Any]) -> Iterator[_Content]:
    prints = folder.read_fingerprints()
    for what, key in {"model": "model", **DRAWN}.items():
        if what in prints:
            yield _Content(what, json.dumps([recipe["model"], recipe.get(key)]), _digest(prints[what]))
    for number, evaluator in enumerate(recipe.get("evaluate") or []):
        files = files_read(folder.evaluations, evaluator)
        if files:
            what = f"data of evaluate.{number} ({evaluator['use']})"
            yield _Content(what, json.dumps(evaluator), _digest(list(files.values())))


def _digest(found: Any) -> str:
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]
