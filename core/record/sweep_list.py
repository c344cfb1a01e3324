"""Read ``sweep.json`` back: which runs a sweep has, and that none of them leads out of its folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ecoflap.core.errors import RunError, cut
from ecoflap.core.sealing.sealed_text import read_sealed_json

SWEEP = "sweep.json"
LOCK = ".sweep.lock"
"""The file that a sweep holds locked in its folder. It is no run's lock, which would make the folder a run's."""
LONGEST = 255
"""Bytes of a name that file systems take."""
_WAY_OUT = "Begin the sweep anew with --fresh, or in another folder."


def is_sweep(folder: Path) -> bool:
    """Return whether a sweep was begun in a folder."""
    return (folder / SWEEP).is_file()


def swept_runs(folder: Path) -> list[dict[str, Any]]:
    """Return for each run its ``folder`` in the sweep's, ``method`` (empty where it has no name), ``seed``, ``grid``.

    :raises RunError: For a file that this version cannot read, and with every run whose folder is none in the sweep's.
    """
    file = folder / SWEEP
    data = read_sealed_json(file, _WAY_OUT)
    if data.get("version") != 1:
        raise RunError(f"{file}: version is {data.get('version')!r}; this version of ecoflap reads 1. {_WAY_OUT}")
    runs: Any = data.get("runs")
    if not isinstance(runs, list) or not all(map(_is_entry, runs)):
        raise RunError(f"{file}: runs should list runs, each with a folder and a method. {_WAY_OUT}")
    if not runs:
        raise RunError(f"{file}: runs lists none, and a sweep has one at least. {_WAY_OUT}")
    problems = list(_strange_folders(runs))
    if problems:
        raise RunError(*(f"{file}: {problem}. {_WAY_OUT}" for problem in problems))
    return runs


def _is_entry(run: Any) -> bool:
    return isinstance(run, dict) and all(isinstance(run.get(key), str) for key in ("folder", "method"))


def _strange_folders(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Say of each run why its folder cannot be one in the sweep's; whoever edits the list can seal it anew."""
    for number, run in enumerate(runs):
        name: str = run["folder"]
        if name in ("", ".", "..") or any(one in name for one in "/\\\0"):
            yield f"runs.{number}.folder is {cut(name)!r}, and the name of a folder in the sweep's is meant"
        elif len(name.encode(errors="replace")) > LONGEST:
            yield f"runs.{number}.folder is {cut(name)!r}, which is longer than {LONGEST} bytes, as no name is"
