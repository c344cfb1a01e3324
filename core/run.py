"""The run folder: what is written where, whose it is, and what a later run may take over."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.files import append_line, read_lines, removed_leftovers, write_whole


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and the few that are read back."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def blocks(self) -> Path:
        return self.path / "blocks"

    @property
    def masks(self) -> Path:
        return self.path / "masks.safetensors"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def is_pruned(self) -> bool:
        """The model is complete: ``masks.safetensors`` is written first, ``model/`` appears whole."""
        return self.model.is_dir() and self.masks.is_file()

    def identify(self, fingerprints: Mapping[str, Any]) -> None:
        """Refuse to go on where the model or the data are not those the folder was begun with."""
        path = self.path / "fingerprints.json"
        if not path.is_file():
            write_whole(path, json.dumps(fingerprints, indent=1))
            return
        before = read_json(path)
        changed = [what for what in fingerprints if before.get(what) != fingerprints[what]]
        if changed:
            raise RunError(
                f"{self.path} was begun with another {' and another '.join(changed)} than is there now. "
                f"Run into another folder, or begin this one anew with --fresh"
            )

    def record_stage(self, stage: str, seconds: float, peak_memory: int) -> None:
        line = {"stage": stage, "seconds": round(seconds, 3), "peak_memory": peak_memory}
        append_line(self.path / "stages.jsonl", line)

    def stages(self) -> list[dict[str, Any]]:
        """The last finished pass of each stage, in order."""
        path = self.path / "stages.jsonl"
        lines = read_lines(path) if path.is_file() else []
        return list({line["stage"]: line for line in lines}.values())


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise RunError(f"{path}: expected a mapping")
    return data


@contextmanager
def open_run(path: Path, *, fresh: bool) -> Iterator[RunFolder]:
    """Make or take up a run folder, for this process alone.

    :param fresh: Delete what an earlier run left there.
    """
    folder = RunFolder(path)
    strangers = (
        path.is_dir() and not folder.recipe.is_file() and any(not p.name.startswith(".") for p in path.iterdir())
    )
    if strangers:
        raise RunError(f"{path} is not empty and no run folder: it has no recipe.yaml. Name another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}. Name another folder with --folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fresh:
            _emptied(path)
        removed_leftovers(path)
        yield folder
    except BlockingIOError as error:
        raise RunError(
            f"{path}: another process is running in this folder. Wait for it, or name another folder"
        ) from error
    finally:
        os.close(lock)


def _emptied(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def require_finished(path: Path) -> RunFolder:
    """An earlier run whose results are wanted."""
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise RunError(f"{path}: no run folder: it has no recipe.yaml")
    if not folder.report.is_file():
        raise EcoflapError(f"{path}: this run is not finished: it has no report.json. Run its recipe again to go on")
    return folder
