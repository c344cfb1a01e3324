"""Scores as they are kept: one line each, in the order they were found, and summed into groups.

Numbers of single weights lie in a file a layer, in a folder beside the lines. The file is written before the line that
knows its seal: one without a line is of a process that was killed in between, and is written anew.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.contracts.records import Aggregate, Estimate, KeptScore, ScoreKind, Unit
from ecoflap.core.disk.whole_files import link_or_copy, whole_file, write_whole
from ecoflap.core.errors import EcoflapError, ModelError, RunError
from ecoflap.core.sealing.sealed_lines import read_lines

_WAY_OUT = "Restore the file, or delete it and score anew"
"""Ends what is said of lines that are no scores."""


@dataclass(frozen=True)
class Scores:
    """The scores that a scorer gave.

    :param unit: Whether ``values`` are by layer or by block.
    :param aggregate: How a group's score comes from those of its members.
    """

    unit: Unit
    aggregate: Aggregate
    values: Mapping[str, KeptScore]

    @property
    def kind(self) -> ScoreKind:
        """Say whether they are numbers, curves, or numbers of single weights."""
        kinds = {type(score) for score in self.values.values()}
        return "curve" if Curve in kinds else "weights" if WeightScores in kinds else "number"

    @property
    def weight_scores(self) -> Mapping[str, WeightScores]:
        """Give those that are a number for each weight of a layer, by the layer's name."""
        return {name: score for name, score in self.values.items() if isinstance(score, WeightScores)}

    def check_files(self, *way_out: str) -> None:
        """Read the files of all numbers of single weights.

        :param way_out: What can be done about a damaged one, where it is another run's.
        :raises FormatError: Where one is missing, or is not what was written.
        """
        for score in self.weight_scores.values():
            score.numbers(*way_out)

    def of(self, members: Mapping[str, int]) -> float | Curve:
        """Compute a group's score from those of its members; of numbers of single weights from their sums.

        :param members: Size by name of each layer or block in it.
        """
        values = [self.values[name] for name in members]
        if self.aggregate == "sum":
            return _scaled_sum(values, 1.0)
        return _scaled_sum(values, 1 / (len(values) if self.aggregate == "mean" else sum(members.values())))


def _scaled_sum(values: Sequence[KeptScore], factor: float) -> float | Curve:
    """Sum scores: curves level by level, estimates from the same batches batch by batch.

    So the standard error of a sum counts what its estimates share.
    """
    curves, numbers = split_by_kind(values)
    if curves:
        return Curve.sum(curves, factor)
    estimates = [value for value in values if isinstance(value, Estimate)]
    if len(estimates) == len(values) and len({len(value.terms) for value in estimates}) == 1:
        return Estimate(factor * sum(terms) for terms in zip(*(value.terms for value in estimates), strict=True))
    return factor * sum(numbers)


def split_by_kind(values: Iterable[KeptScore]) -> tuple[list[Curve], list[float]]:
    """Tell curves and numbers apart; numbers of single weights count by their sum."""
    curves: list[Curve] = []
    numbers: list[float] = []
    for value in values:
        if isinstance(value, Curve):
            curves.append(value)
        else:
            numbers.append(value.total if isinstance(value, WeightScores) else value)
    return curves, numbers


def checked(name: str, score: float) -> float:
    """Refuse a number that no allocator can use, naming what it is for."""
    if not isfinite(score) or score < 0:
        raise ModelError(f"{name}: its score is {float(score)}; a score must be a finite number that is not negative")
    return score


def score_line(name: str, score: KeptScore) -> dict[str, Any]:
    """Give the line of a layer or block; of an estimate with the terms that it is a mean of."""
    if isinstance(score, Curve):
        return {"name": name, "levels": list(score.levels), "rises": list(score.rises)}
    if isinstance(score, WeightScores):
        return {"name": name, "file": score.file.name, "seal_of_file": score.seal, "sum": score.total}
    terms = {"terms": list(score.terms)} if isinstance(score, Estimate) else {}
    return {"name": name, "score": float(score), **terms}


def header_line(unit: Unit, aggregate: Aggregate) -> dict[str, Any]:
    """Give the first line, which says what the others are of."""
    return {"version": 1, "unit": unit, "aggregate": aggregate}


def read_scores(path: Path) -> Scores:
    """Read a ``scores.jsonl``: a header, then a line for each layer or block.

    :raises RunError: Where there is none, or a line is not what this version writes.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; scores are there once a run has scored its layers")
    header, *lines = read_lines(path) or [{}]
    if not _is_header(header):
        raise RunError(f"{path}: not a file of scores that this version reads")
    for number, line in enumerate(lines, 2):  # the header is line 1
        if not _is_score(line):
            raise RunError(f"{path}:{number}: this line is not the score of a layer or block. {_WAY_OUT}")
    values = {line["name"]: _read(line, folder_of(path)) for line in lines}
    return Scores(header["unit"], header["aggregate"], values)


def take_over_scores(source: Path, target: Path) -> None:
    """Take scores of another run into this one: first the files of numbers, as one file with two names where it can be.

    Neither is ever written to again, as ``take_over_remembered`` has it. What was taken is checked when it is mapped.
    """
    for score in read_scores(source).weight_scores.values():
        with whole_file(folder_of(target) / score.file.name) as temporary:
            link_or_copy(score.file, temporary)
    write_whole(target, source.read_bytes())


def folder_of(scores: Path) -> Path:
    """Give the folder, beside a ``scores.jsonl``, of the files that its lines name: ``scores/``."""
    return scores.with_suffix("")


def file_name(number: int) -> str:
    """Name the file of a layer's numbers by the layer's place in the model; three digits are for the eye."""
    return f"{number:03d}.safetensors"


def _is_header(line: Mapping[str, Any]) -> bool:
    known = line.get("unit") in get_args(Unit) and line.get("aggregate") in get_args(Aggregate)
    return known and line.get("version") == 1


def _read(line: Mapping[str, Any], folder: Path) -> KeptScore:
    if "file" in line:
        return WeightScores(folder / line["file"], line["seal_of_file"], float(line["sum"]))
    if "rises" in line:
        return Curve(tuple(map(float, line["levels"])), tuple(map(float, line["rises"])))
    return Estimate(line["terms"]) if "terms" in line else float(line["score"])


def _is_curve(line: Mapping[str, Any]) -> bool:
    levels, rises = line.get("levels"), line["rises"]
    if not isinstance(line.get("name"), str) or not isinstance(levels, list) or not isinstance(rises, list):
        return False
    try:
        return all(type(value) in (int, float) for value in (*levels, *rises)) and bool(_read(line, Path()))
    except EcoflapError:
        return False


def _is_of_weights(line: Mapping[str, Any]) -> bool:
    texts = [line.get(key) for key in ("name", "file", "seal_of_file")]
    if not all(isinstance(text, str) for text in texts) or type(line.get("sum")) not in (int, float):
        return False
    return re.fullmatch(r"[0-9]{3,}\.safetensors", line["file"]) is not None  # which leads nowhere else


def _is_score(line: Mapping[str, Any]) -> bool:
    if "rises" in line:
        return _is_curve(line)
    if "file" in line:
        return _is_of_weights(line)
    terms = line.get("terms", [0.0])  # a score that is no estimate has none
    named = isinstance(line.get("name"), str) and isinstance(terms, list) and bool(terms)
    return named and all(type(value) in (int, float) for value in (line.get("score"), *terms))
