"""The curve of a layer, block or group: how much the loss rises at a ladder of sparsities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

from ecoflap.core.errors import EcoflapError


class CurveError(EcoflapError):
    """Levels or rises are no curve. Whoever asked a scorer for it adds which one that was, and where."""


@dataclass(frozen=True)
class Curve:
    """A score that is a curve: by how much the loss rises where this part of the model alone loses so much.

    The curve of a group is that of its members, added level by level.

    :param levels: Sparsities, each larger than the one before, above 0 and below 1.
    :param rises: How much the loss rises at each; a measured one may be below 0 where little is lost.
    :param notes: Sentences of the scorer for the user, which the run tells; they are no part of the curve.
    """

    levels: tuple[float, ...]
    rises: tuple[float, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("levels", "rises"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if not isinstance(self.notes, tuple | list) or not all(isinstance(note, str) for note in self.notes):
            raise CurveError(f"notes are {self.notes!r}; they are a tuple of sentences")
        object.__setattr__(self, "notes", tuple(self.notes))
        check_levels(self.levels)
        if len(self.rises) != len(self.levels):
            raise CurveError(f"a curve has {len(self.levels)} levels and {len(self.rises)} rises; each level has one")
        wrong = [
            f"the rise at {level:g} is {rise}; a rise is finite"
            for level, rise in zip(self.levels, self.rises, strict=True)
            if not isfinite(rise)
        ]
        if wrong:
            raise CurveError(*wrong)

    @classmethod
    def sum(cls, curves: Sequence["Curve"], factor: float = 1.0) -> "Curve":
        """Add curves level by level, and scale the sum.

        :raises EcoflapError: Where there is none, or they are of different levels.
        """
        ladders = {curve.levels for curve in curves}
        if len(ladders) != 1:
            raise EcoflapError(f"curves of {len(ladders)} different ladders of sparsities cannot be added")
        sums = (factor * sum(rises) for rises in zip(*(curve.rises for curve in curves), strict=True))
        return cls(ladders.pop(), tuple(sums))

    def nearest(self, sparsity: float) -> float:
        """Give the rise at the level that is nearest to a sparsity; of two equally near ones at the lower."""
        at = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - sparsity))
        return self.rises[at]

    def __str__(self) -> str:
        return ", ".join(
            f"{rise:.4g} at {100 * level:g} %" for level, rise in zip(self.levels, self.rises, strict=True)
        )


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    """Give numbers, of whatever holds them, as a curve keeps them."""
    try:
        if isinstance(given, str):
            raise TypeError("a text holds characters")
        return tuple(map(float, given))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CurveError(f"{name} are {given!r}; they are numbers") from error


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that are no ladder of sparsities: fewer than two, none between 0 and 1, or not rising."""
    ordered = all(a < b for a, b in pairwise(levels))
    if len(levels) < 2 or not ordered or not all(0 < level < 1 for level in levels):
        raise CurveError(
            f"levels are {list(levels)}; a ladder is two sparsities or more above 0 and below 1, each larger than the "
            f"one before, such as [0.4, 0.6, 0.8]"
        )
