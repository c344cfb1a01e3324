"""What evaluators found, kept a line each, so that each evaluator runs once before and once after the pruning."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.errors import ModelError
from ecoflap.core.files import append_line, read_lines, sha256_of
from ecoflap.core.part import Part
from ecoflap.core.parts import Adapter

STAGES = ("dense", "pruned")


class Evaluator:
    """One evaluator of a recipe, and the lines of it in a run folder.

    A line counts only while evaluator and files are the same: one that was changed is simply run again.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {"evaluator": self.part.plain(), "files": digests(self.part)}

    def line(self, path: Path, stage: str) -> dict[str, Any] | None:
        """What it found of the dense or the pruned model, if it ran."""
        wanted = {"stage": stage, **self._identity}
        return next((line for line in read_lines(path) if all(line.get(key) == wanted[key] for key in wanted)), None)

    def run(self, path: Path, stage: str, model: nn.Module, adapter: Adapter) -> Any:
        """Evaluate, and add the line; the evaluator itself is returned, with what it may note."""
        evaluator = self.part.build()
        measures = {name: self._checked(name, asdict(m)) for name, m in evaluator(model, adapter).items()}
        append_line(path, {"stage": stage, **self._identity, "measures": measures})
        return evaluator

    def _checked(self, name: str, measure: dict[str, Any]) -> dict[str, Any]:
        """JSON knows no infinity: the standard error of a single thing is null."""
        if not isfinite(measure["value"]):
            raise ModelError(f"{self.part.use}: the {name} of the model is {measure['value']}")
        error = measure["standard_error"]
        return {**measure, "standard_error": error if isfinite(error) else None}


def measures_of(path: Path, evaluators: list[Evaluator]) -> dict[str, dict[str, Any]]:
    """By stage and name. A name that two evaluators use is numbered."""
    found: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for stage, measures in found.items():
        for evaluator in evaluators:
            line: Mapping[str, Any] = evaluator.line(path, stage) or {"measures": {}}
            for name, measure in line["measures"].items():
                same = sum(known == name or known.startswith(f"{name} (") for known in measures)
                measures[f"{name} ({same + 1})" if same else name] = measure
    return found


def digests(part: Part) -> dict[str, str]:
    """A sha256 for each file or folder that a part or one inside it is given."""
    found: dict[str, str] = {}
    for value in part.parameters.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Part):
                found |= digests(item)
            elif isinstance(item, Path):
                found[str(item)] = _digest(item)
    return found


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    lines = (f"{file.relative_to(path)} {sha256_of(file)}\n" for file in files)
    return sha256("".join(lines).encode()).hexdigest()
