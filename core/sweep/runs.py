"""Read and write ``sweep.json``: which runs a sweep has, with the names of their methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.disk.sealed_text import read_sealed_json, write_sealed_json
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
    data = read_sealed_json(folder / SWEEP, _WAY_OUT)
    if data.get("version") != 1:
        raise RunError(
            f"{folder / SWEEP}: version is {data.get('version')!r}; this version of ecoflap reads 1. {_WAY_OUT}"
        )
    runs: Any = data.get("runs")
    if not isinstance(runs, list) or not all(map(_is_entry, runs)):
        raise RunError(f"{folder / SWEEP}: runs should list runs, each with a folder and a method. {_WAY_OUT}")
    return runs


_WAY_OUT = "Begin the sweep anew with --fresh, or in another folder."


def _is_entry(run: Any) -> bool:
    texts = isinstance(run, dict) and all(isinstance(run.get(key), str) for key in ("folder", "method"))
    return texts and Path(run["folder"]).name == run["folder"]  # no path that leads out of the sweep's folder


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
