"""Write ``sweep.json``, the list of a sweep's runs with the names of their methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.sweep_list import SWEEP, is_sweep, swept_runs
from ecoflap.core.sealing.sealed_text import write_sealed_json


def record_runs(folder: Path, runs: Sequence[Mapping[str, Any]], *, fresh: bool = False) -> None:
    """Write the list. Runs that are on it already stay as long as they are finished, so that a sweep can grow.

    :param fresh: Begin a new list where there is one that cannot be read.
    :raises RunError: For a list that cannot be read, unless ``fresh``.
    """
    finished = {run["folder"]: run for run in _listed(folder, fresh) if _is_finished(folder / run["folder"])}
    data = {"version": 1, "runs": list((finished | {run["folder"]: run for run in runs}).values())}
    write_sealed_json(folder / SWEEP, data, ensure_ascii=False)


def _listed(folder: Path, fresh: bool) -> list[dict[str, Any]]:
    if not is_sweep(folder):
        return []
    try:
        return swept_runs(folder)
    except RunError:
        if fresh:
            return []
        raise


def _is_finished(folder: Path) -> bool:
    return RunFolder(folder).report.is_file()
