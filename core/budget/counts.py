"""Count exactly: the budget of a layer, a group of layers, and how many weights a sparsity leaves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite
from typing import TypeAlias

from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.weight_scores import WeightScores
from ecoflap.core.errors import EcoflapError

Number: TypeAlias = int | float | str | Fraction
"""How a share may be given. A text or a float means what is written, so that 0.1 is one tenth."""


@dataclass(frozen=True)
class Keep:
    """Says that exactly ``count`` weights of a layer are kept.

    :raises EcoflapError: Where the count is negative.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise EcoflapError(f"a layer cannot keep {self.count} weights: the count is 0 or more")

    def keep_of(self, size: int) -> int:
        """Give how many it keeps of ``size`` weights, however many these are; a pattern is asked the same."""
        return self.count


@dataclass(frozen=True)
class Pattern:
    """Says that ``n`` weights are kept of every ``m`` consecutive inputs of a row; ``Pattern(2, 4)`` is NVIDIA's 2:4.

    The literature disagrees: Wanda's and SparseGPT's ``prune_n`` counts the pruned ones. Here, as in the name "N:M
    sparsity", n are kept.

    :raises EcoflapError: Where n is not between 1 and m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise EcoflapError(
                f"pattern {self}: n weights are kept of every m, so n is at least 1 and at most m, as in 2:4"
            )

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Read a pattern as it is written: ``"2:4"``."""
        n, colon, m = text.partition(":")
        if not (colon and n.strip().isdecimal() and m.strip().isdecimal()):
            raise EcoflapError(f"{text!r} is no pattern: write n:m, two whole numbers, as in 2:4")
        return cls(int(n), int(m))

    @property
    def sparsity(self) -> Fraction:
        """Give the share of weights that go."""
        return 1 - Fraction(self.n, self.m)

    def keep_of(self, size: int) -> int:
        """Give how many it keeps of ``size`` weights, which are whole runs of m."""
        return size // self.m * self.n

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Budget: TypeAlias = Keep | Pattern
"""How many weights a layer keeps: a count or a pattern."""


@dataclass(frozen=True)
class Group:
    """Describes layers that share one sparsity: a layer, a block, a tower or the whole model.

    :param size: How many prunable weights it has.
    :param score: How much the loss cares about it; larger is kept longer. 0 where nothing was scored, or by a curve;
        what its weights' numbers come to where the scorer gave these.
    :param layers: Names of its layers.
    :param tower: The tower it lies in; empty where it spans several.
    :param floor: It keeps at least this many weights.
    :param cap: It keeps at most this many weights; None for all.
    :param block: The block it lies in; empty where it spans several.
    :param curve: How the loss rises with its sparsity, where the scorer gave curves.
    :param weight_scores: The numbers of the weights of each of its layers, where the scorer gave a number a weight.
    """

    name: str
    size: int
    score: float
    layers: tuple[str, ...] = ()
    tower: str = field(default="", kw_only=True)
    floor: int = field(default=0, kw_only=True)
    cap: int | None = field(default=None, kw_only=True)
    block: str = field(default="", kw_only=True)
    curve: Curve | None = field(default=None, kw_only=True)
    weight_scores: tuple[WeightScores, ...] = field(default=(), kw_only=True)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Give the names of its layers; one of which none are named is a layer itself."""
        return self.layers or (self.name,)

    @property
    def most(self) -> int:
        """Give the most weights that it may keep: its cap, or all."""
        return self.size if self.cap is None else min(self.cap, self.size)

    def clamp(self, count: int) -> int:
        """Bring a count into the range that it may keep: from its floor to the most."""
        return max(self.floor, min(count, self.most))


def check_scores(groups: Sequence[Group], wanted: str, is_right: Callable[[float], bool] = isfinite) -> None:
    """Refuse groups whose scores nothing can be shared by.

    :param wanted: What a score has to be, as the message says it: ``a score is finite``.
    :param is_right: Says whether a finite score is that.
    :raises EcoflapError: With the name and score of each that is not, or that is not finite.
    """
    wrong = [group for group in groups if not (isfinite(group.score) and is_right(group.score))]
    if wrong:
        raise EcoflapError(*(f"the score of {group.name} is {group.score}: {wanted}" for group in wrong))


def exact(number: Number) -> Fraction:
    """Read a number as it is written, so that 0.1 is one tenth and not the float next to it."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def keep_count(size: int, sparsity: Number) -> int:
    """Give how many of ``size`` weights a sparsity leaves: ⌊size · (1 - sparsity)⌋, in exact arithmetic.

    In floating point a sparsity of 0.9 would leave none of 10 weights; here it leaves 1.
    """
    try:
        share = exact(sparsity)
    except (ValueError, ZeroDivisionError):
        raise EcoflapError(f"{sparsity!r} is no sparsity: write a number between 0 and 1, such as 0.5") from None
    if not 0 <= share <= 1:
        raise EcoflapError(f"sparsity is the share of weights that go, between 0 and 1; {sparsity} is not")
    return int(size * (1 - share) // 1)
