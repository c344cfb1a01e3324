"""Read and write ``sweep.json``: which runs a sweep has, with the names of their methods."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.disk.json_files import read_json
from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder

SWEEP = "sweep.json"


def is_sweep(folder: Path) -> bool:
    """Return whether a sweep was begun in a folder."""
    return (folder / SWEEP).is_file()


def swept_runs(folder: Path) -> list[dict[str, Any]]:
    """Return for each run its ``folder`` in the sweep's, ``method`` (empty where it has no name), ``seed``, ``grid``.

    :raises RunError: For a file that this version cannot read.
    """
    data = read_json(folder / SWEEP)
    if data.get("version") != 1:
        raise RunError(
            f"{folder / SWEEP}: version is {data.get('version')!r}; this version of ecoflap reads 1. Begin the sweep "
            f"anew with --fresh, or in another folder"
        )
    runs: list[dict[str, Any]] = data["runs"]
    return runs


def record_runs(folder: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Write the list. Runs that are on it already stay as long as they are finished, so that a sweep can grow."""
    before = swept_runs(folder) if is_sweep(folder) else []
    kept = {run["folder"]: run for run in before if RunFolder(folder / run["folder"]).report.is_file()}
    data = {"version": 1, "runs": list((kept | {run["folder"]: run for run in runs}).values())}
    write_whole(folder / SWEEP, json.dumps(data, indent=1, ensure_ascii=False))
