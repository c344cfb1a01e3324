"""Keep what evaluators found, a line each, so that each evaluator runs once before and once after the pruning."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from hashlib import sha256
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from ecoflap.core.contracts.answers import is_text, shown
from ecoflap.core.contracts.blame import blaming, naming
from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.contracts.records import Measure
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import EcoflapError, ModelError, RunError
from ecoflap.core.guards.left_as_given import left_as_given
from ecoflap.core.guards.processor_lent import processor_lent
from ecoflap.core.machine.part_code import code_of_parts, digests_of, is_ours
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.remembered import DENSE, open_remembered, take_over_remembered, write_remembered
from ecoflap.core.record.report import RecordedMeasure
from ecoflap.core.registry.nested_values import leaves
from ecoflap.core.sealing.sealed_lines import append_line, read_lines
from ecoflap.core.sealing.validation import wrong_places
from ecoflap.core.seeding import seed_for, seeded

STAGES = ("dense", "pruned")
CODE = "code"
"""The key of a line that has the digest of an evaluator's code, where that does not come with ecoflap."""
_CURE = "Have it put back what it changes, hooks too, or work on a copy. A run that goes on reads the model anew"
_LONGEST_NAME = 100
"""Characters of an evaluator's name in that of a file; an import path may be longer than a file system takes."""
_NEEDS: Mapping[str, type] = {"measures": dict}


class Evaluation:
    """Runs one evaluator of a recipe, and finds the lines of it in a run folder.

    A line counts only while evaluator, its code and files are the same: one that was changed is simply run again.
    """

    def __init__(self, evaluator: PartSpec) -> None:
        self.evaluator = evaluator

    @cached_property
    def _identity(self) -> dict[str, Any]:
        code = digests_of(code_of_parts(spec.factory for _, spec in self.evaluator.with_inner("")))
        return {"evaluator": self.evaluator.plain(), "files": digests(self.evaluator), **({CODE: code} if code else {})}

    @property
    def files(self) -> dict[str, str]:
        """Give what tells the files that it reads apart from others, by their paths or by the part that names them."""
        found: dict[str, str] = self._identity["files"]
        return found

    @property
    def compares(self) -> bool:
        """Say whether it measures nothing of the dense model but remembers it, to measure the pruned one by."""
        return self.evaluator.options.remember is not None

    def remembered(self, path: Path) -> Path:
        """Name the file of what it remembers of the dense model, beside that of the lines."""
        known = sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.evaluator.use)[-_LONGEST_NAME:].lstrip(".-")
        return path.parent / DENSE / f"{name}-{known}.safetensors"

    def line(self, path: Path, stage: str) -> dict[str, Any] | None:
        """Give the last of what it found of the dense or the pruned model; None where it did not run."""
        wanted = {"stage": stage, **self._identity}
        # Lines of before the code of an evaluator of one's own was kept have none, and count.
        found = read_lines(path, _NEEDS)
        lines = [line for line in found if all(line.get(key, one) == one for key, one in wanted.items())]
        if self._is_remembered(stage):
            lines = [line for line in lines if self.remembered(path).name in line.get("remembered", {})]
        return lines[-1] if lines else None

    def is_done(self, path: Path, stage: str) -> bool:
        """Say whether it need not look at the dense or the pruned model any more.

        What was remembered of the dense model may be deleted; it is asked for again where the pruned one is yet to be
        held against it.
        """
        if self.line(path, stage) is None:
            return False
        return stage == "pruned" or self.can_be_taken_over(path) or self.line(path, "pruned") is not None

    def can_be_taken_over(self, path: Path) -> bool:
        """Say whether there is all that another run would find of the dense model."""
        return self.line(path, "dense") is not None and (not self.compares or self.remembered(path).is_file())

    def run(
        self,
        path: Path,
        stage: str,
        model: nn.Module,
        adapter: Adapter,
        note: Note,
        ranks: Ranks = ALONE,
        refuse_changed: Callable[[Ranks], None] = lambda ranks: None,
        *,
        is_on_disk: bool = False,
    ) -> None:
        """Evaluate a model, and add the line; with the seal of what is remembered of the dense one, where that is.

        :param note: Takes sentences of the evaluator, such as how many answers were empty.
        :param ranks: The processes that do it together, where the evaluator shares its data; otherwise the first does
            it alone.
        :param refuse_changed: Raises before the line is added where files that weights are mapped from have changed.
        :param is_on_disk: Whether the model's weights stay in their files.
        :raises ChangedModelError: Where the evaluator leaves the model otherwise than it was; no line is added then.
        """

        def line(by: Ranks) -> dict[str, Any]:
            return self._line(path, stage, model, adapter, note, by, refuse_changed, is_on_disk)

        if ranks.size == 1 or (self.evaluator.options.dealt is not None and not self._is_remembered(stage)):
            found = line(ranks)
            ranks.at_first(lambda: append_line(path, found))
        else:
            ranks.first(lambda: append_line(path, line(ALONE)))

    def _is_remembered(self, stage: str) -> bool:
        """Say whether nothing is measured at a stage, but the model remembered."""
        return self.compares and stage == "dense"

    def _line(
        self,
        path: Path,
        stage: str,
        model: nn.Module,
        adapter: Adapter,
        note: Note,
        ranks: Ranks,
        refuse_changed: Callable[[Ranks], None],
        is_on_disk: bool,
    ) -> dict[str, Any]:
        is_remembered, who = self._is_remembered(stage), f"the evaluator {self.evaluator.use}"
        # Of no recipe's seed: both stages are held against each other, and other runs take the dense one over.
        left = left_as_given(who, model, _CURE, is_on_disk=is_on_disk)
        lent = processor_lent(adapter, self.evaluator.factory)
        named = naming(self.evaluator.use if is_ours(self.evaluator.factory) else who)  # ours mostly say it themselves
        with left, lent, named, blaming(who), seeded(seed_for(0, "evaluate")):
            found = {} if is_remembered else self._found(path, model, adapter, note, ranks)
            if not is_remembered:
                self._check_names(found)
            measures = {name: self._checked(name, asdict(measure)) for name, measure in found.items()}
            seals = {"remembered": self._remember(path, model, adapter, note)} if is_remembered else {}
        refuse_changed(ranks)
        if stage == "pruned":
            self._tell_others(path, measures, note)
        return {"stage": stage, **self._identity, "measures": measures, **seals}

    def take_over(self, source: Path, target: Path) -> None:
        """Add the line of what another run found of the dense model, and take what it remembered of it along.

        :param source: The other run's lines.
        :raises FormatError: Where the other run's file is not what was written.
        """
        line = self._dense_line(source)
        if self.compares:
            there, here = self.remembered(source), self.remembered(target)
            take_over_remembered(there, line["remembered"][there.name], here)
        append_line(target, line)

    def _found(self, path: Path, model: nn.Module, adapter: Adapter, note: Note, ranks: Ranks) -> Any:
        dealt = None if ranks.size == 1 else self.evaluator.options.dealt
        alone = partial(self.evaluator.built, model, adapter, note)
        measure = alone if dealt is None else partial(dealt, model, adapter, note, ranks)
        if not self.compares:
            return measure()
        file = self.remembered(path)
        with open_remembered(file, self._dense_line(path)["remembered"][file.name]) as dense:
            return measure(dense)

    def _remember(self, path: Path, model: nn.Module, adapter: Adapter, note: Note) -> dict[str, str]:
        """Ask what is to be remembered of the dense model, and write it; its seal by the file's name."""
        file, found = self.remembered(path), self.evaluator.options.remember(model, adapter, note)
        return {file.name: write_remembered(file, self.evaluator.use, found)}

    def _dense_line(self, path: Path) -> dict[str, Any]:
        line = self.line(path, "dense")
        if line is None:
            raise RunError(
                f"{path} has no line of what {self.evaluator.use} found of the dense model. Evaluate it first."
            )
        return line

    def _check_names(self, found: Any) -> None:
        """Refuse what is no mapping of measures by names that a table can show, and one of none."""
        if isinstance(found, Mapping) and not found:
            raise EcoflapError(f"the evaluator {self.evaluator.use} gave no measure; it gives one at least")
        wrong = [found] if not isinstance(found, Mapping) else [name for name in found if not is_text(name)]
        wrong += [] if wrong else [one for one in found.values() if not isinstance(one, Measure)]
        if wrong or not isinstance(found, Mapping):
            answered = f"answered with {shown(wrong[0] if wrong else found)}"
            raise EcoflapError(f"the evaluator {self.evaluator.use} {answered}; it gives a Measure by each name")

    def _tell_others(self, path: Path, measures: Mapping[str, Mapping[str, Any]], note: Note) -> None:
        """Say where a measure is of other things than that of the dense model, beside which it stands."""
        line = self.line(path, "dense")
        dense = {} if line is None else line["measures"]
        for name, measure in measures.items():
            if name in dense and any(dense[name][key] != measure[key] for key in ("unit", "larger_is_better")):
                note(
                    f"{name} has another unit or way to be read than for the dense model, and no table can compare them"
                )
            if name in dense and dense[name]["n"] != measure["n"]:
                counts = (
                    f"{measure['n']:,} {measure['unit'] or 'things'}, and over {dense[name]['n']:,} for the dense model"
                )
                note(f"{name} is over {counts}: the two are of other data, and say little of what was lost")

    def _checked(self, name: str, measure: dict[str, Any]) -> dict[str, Any]:
        """Hold a measure to its types. JSON knows no infinity: the standard error of a single thing is null."""
        measure = {name: _plain_number(one) for name, one in measure.items()}
        value, error = measure["value"], measure["standard_error"]
        if isinstance(value, float) and not isfinite(value):
            raise ModelError(f"{self.evaluator.use}: the {name} of the model is {value}")
        if isinstance(error, int | float) and error < 0:
            raise EcoflapError(f"{self.evaluator.use}: the standard error of the {name} is {error}, which is below 0")
        if isinstance(error, float) and not isfinite(error):
            measure = {**measure, "standard_error": None}
        try:
            return RecordedMeasure.model_validate(measure).model_dump()
        except ValidationError as wrong:
            places = "; ".join(wrong_places(wrong))
            given = ", ".join(f"{key} = {shown(one)}" for key, one in measure.items())
            raise EcoflapError(
                f"the evaluator {self.evaluator.use} gave the measure {name}: {places} ({given})"
            ) from wrong


def _plain_number(value: Any) -> Any:
    """Give numpy's numbers as Python's; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def remembered_seals(path: Path) -> dict[str, str]:
    """Give the seals of the files of what is remembered of the dense model, by name, as the last lines know them."""
    return {name: seal for line in read_lines(path, _NEEDS) for name, seal in line.get("remembered", {}).items()}


def measures_of(path: Path, evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """Collect all measures by stage and name. A name that two evaluators use is numbered."""
    found: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for stage, measures in found.items():
        for evaluation in evaluations:
            line: Mapping[str, Any] = evaluation.line(path, stage) or {"measures": {}}
            for name, measure in line["measures"].items():
                same = sum(known == name or known.startswith(f"{name} (") for known in measures)
                measures[f"{name} ({same + 1})" if same else name] = measure
    return found


def files_read(path: Path, evaluator: Mapping[str, Any]) -> dict[str, str]:
    """Give the digests of the files that an evaluator last read, by their paths or parts; empty where it read none.

    :param evaluator: As a recipe writes it in full.
    """
    lines = [line for line in read_lines(path, _NEEDS) if line.get("evaluator") == evaluator]
    return dict(lines[-1].get("files", {})) if lines else {}


def digests(part: PartSpec, inside: tuple[str, ...] = ()) -> dict[str, str]:
    """Compute a sha256 over the contents of each file or folder that a part or one inside it is given.

    A part with ``files()``, such as a dataset, has one over the files it names: those that it would read, which may be
    more than it is given, as images are that an index names, and less than there are in a folder; of a folder it names,
    over the names in it. All of a file is read: by size and time a changed one may look the same, and a copy changed.

    :param inside: Parameters that lead to the part.
    """
    named = part.options.files() if part.kind in ("dataset", "evaluator", "pruner") else None
    if named is not None:
        return {".".join((*inside, part.use)): _digest(named)}
    found: dict[str, str] = {}
    for name, value in part.parameters.items():
        for number, item in enumerate(value if isinstance(value, list | tuple) else (value,)):
            if isinstance(item, PartSpec):
                found |= digests(item, (*inside, name, *([str(number)] if number else [])))
            else:
                found |= {str(one): _digest(_files_of(one)) for one in leaves(item) if isinstance(one, Path)}
    return found


def _files_of(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _digest(paths: Iterable[Path]) -> str:
    """Hash the contents and names of files, and the names in a folder; the folders that they lie in may be others."""
    lines = (f"{path.name} {_names_in(path) if path.is_dir() else sha256_of(path)}\n" for path in paths)
    return sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _names_in(folder: Path) -> list[str]:
    return sorted(inside.name for inside in folder.iterdir())
