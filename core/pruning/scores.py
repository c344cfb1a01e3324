"""Scores as they are kept: one line each, in the order they were found, and summed into groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from ecoflap.core.budget.curves import Curve
from ecoflap.core.contracts.records import Aggregate, Estimate, Score, ScoreKind, Unit
from ecoflap.core.disk.sealed_lines import read_lines
from ecoflap.core.errors import EcoflapError, ModelError, RunError


@dataclass(frozen=True)
class Scores:
    """The scores that a scorer gave.

    :param unit: Whether ``values`` are by layer or by block.
    :param aggregate: How a group's score comes from those of its members.
    """

    unit: Unit
    aggregate: Aggregate
    values: Mapping[str, Score]

    @property
    def kind(self) -> ScoreKind:
        """Say whether they are numbers or curves."""
        return "curve" if any(isinstance(score, Curve) for score in self.values.values()) else "number"

    def of(self, members: Mapping[str, int]) -> Score:
        """Compute a group's score from those of its members.

        :param members: Size by name of each layer or block in it.
        """
        values = [self.values[name] for name in members]
        if self.aggregate == "sum":
            return _scaled_sum(values, 1.0)
        return _scaled_sum(values, 1 / (len(values) if self.aggregate == "mean" else sum(members.values())))


def _scaled_sum(values: Sequence[Score], factor: float) -> Score:
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


def split_by_kind(values: Iterable[Score]) -> tuple[list[Curve], list[float]]:
    """Tell curves and numbers apart."""
    curves: list[Curve] = []
    numbers: list[float] = []
    for value in values:
        if isinstance(value, Curve):
            curves.append(value)
        else:
            numbers.append(value)
    return curves, numbers


def checked(name: str, score: Score) -> Score:
    """Refuse a number that no allocator can use, naming what it is for; a curve was checked when it was made."""
    if isinstance(score, Curve):
        return score
    if not isfinite(score) or score < 0:
        raise ModelError(f"{name}: its score is {float(score)}; a score must be a finite number that is not negative")
    return score


def score_line(name: str, score: Score) -> dict[str, Any]:
    """Give the line of a layer or block; of an estimate with the terms that it is a mean of."""
    if isinstance(score, Curve):
        return {"name": name, "levels": list(score.levels), "rises": list(score.rises)}
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
    return Scores(header["unit"], header["aggregate"], {line["name"]: _read(line) for line in lines})


_WAY_OUT = "Restore the file, or delete it and score anew"


def _is_header(line: Mapping[str, Any]) -> bool:
    known = line.get("unit") in get_args(Unit) and line.get("aggregate") in get_args(Aggregate)
    return known and line.get("version") == 1


def _read(line: Mapping[str, Any]) -> Score:
    if "rises" in line:
        return Curve(tuple(map(float, line["levels"])), tuple(map(float, line["rises"])))
    return Estimate(line["terms"]) if "terms" in line else float(line["score"])


def _is_curve(line: Mapping[str, Any]) -> bool:
    levels, rises = line.get("levels"), line["rises"]
    if not isinstance(line.get("name"), str) or not isinstance(levels, list) or not isinstance(rises, list):
        return False
    try:
        return all(type(value) in (int, float) for value in (*levels, *rises)) and bool(_read(line))
    except EcoflapError:
        return False


def _is_score(line: Mapping[str, Any]) -> bool:
    if "rises" in line:
        return _is_curve(line)
    terms = line.get("terms", [0.0])  # a score that is no estimate has none
    named = isinstance(line.get("name"), str) and isinstance(terms, list) and bool(terms)
    return named and all(type(value) in (int, float) for value in (line.get("score"), *terms))
