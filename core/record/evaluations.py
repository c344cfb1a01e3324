"""What evaluators found, kept a line each, so that each evaluator runs once before and once after the pruning."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.disk.whole_files import append_line, read_lines, sha256_of
from ecoflap.core.errors import ModelError
from ecoflap.core.recipe.part_spec import Part

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


def digests(part: Part, inside: tuple[str, ...] = ()) -> dict[str, str]:
    """A sha256 over the contents of each file or folder that a part or one inside it is given.

    A part with ``files()``, such as a dataset, has one over the files it names: those that it would read, which may be
    more than it is given, as images are that an index names, and less than there are in a folder; of a folder it names,
    over the names in it. All of a file is read: by size and time a changed one may look the same, and a copy changed.

    :param inside: Parameters that lead to the part.
    """
    named = getattr(part.build(), "files", None)
    if callable(named):
        return {".".join((*inside, part.use)): _digest(named())}
    found: dict[str, str] = {}
    for name, value in part.parameters.items():
        for number, item in enumerate(value if isinstance(value, list | tuple) else (value,)):
            if isinstance(item, Part):
                found |= digests(item, (*inside, name, *([str(number)] if number else [])))
            elif isinstance(item, Path):
                found[str(item)] = _digest(_files_of(item))
    return found


def _files_of(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _digest(paths: Iterable[Path]) -> str:
    """Over the contents of files, and over the names in a folder."""
    lines = (f"{path} {_names_in(path) if path.is_dir() else sha256_of(path)}\n" for path in paths)
    return sha256("".join(lines).encode()).hexdigest()


def _names_in(folder: Path) -> list[str]:
    return sorted(inside.name for inside in folder.iterdir())
