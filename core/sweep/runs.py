"""What a sweep leaves on the disk beside its runs: the list of them, with their methods' names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder, read_json

SWEEP = "sweep.json"


def is_sweep(folder: Path) -> bool:
    return (folder / SWEEP).is_file()


def swept_runs(folder: Path) -> list[dict[str, Any]]:
    """Each run's ``folder`` in the sweep's, ``method`` (empty where it has no name), ``seed`` and ``grid``.

    :raises RunError: For a file that this version cannot read.
    """
    told = read_json(folder / SWEEP)
    if told.get("version") != 1:
        raise RunError(f"{folder / SWEEP}: not a list of runs that this version reads")
    runs: list[dict[str, Any]] = told["runs"]
    return runs


def record_runs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Earlier runs stay on the list as long as they are finished, so that a sweep can grow."""
    before = swept_runs(folder) if is_sweep(folder) else []
    kept = {run["folder"]: run for run in before if RunFolder(folder / run["folder"]).report.is_file()}
    told = {"version": 1, "runs": list((kept | {run["folder"]: run for run in runs}).values())}
    write_whole(folder / SWEEP, json.dumps(told, indent=1, ensure_ascii=False))
