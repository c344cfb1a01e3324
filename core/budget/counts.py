"""Exact integer budgets: a layer's count or pattern, a group of layers, and the count that a sparsity leaves."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from ecoflap.core.errors import EcoflapError

Number: TypeAlias = int | float | str | Fraction


@dataclass(frozen=True)
class Keep:
    """Exactly ``count`` weights of a layer are kept."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise EcoflapError(f"a layer cannot keep {self.count} weights: the count is 0 or more")


@dataclass(frozen=True)
class Pattern:
    """``n`` weights are kept of every ``m`` consecutive inputs of a row; ``Pattern(2, 4)`` is NVIDIA's 2:4.

    The literature disagrees: Wanda's and SparseGPT's ``prune_n`` counts the pruned ones. Here, as in the name "N:M
    sparsity", n are kept.
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
        """From ``"2:4"``."""
        n, colon, m = text.partition(":")
        if not (colon and n.strip().isdecimal() and m.strip().isdecimal()):
            raise EcoflapError(f"{text!r} is no pattern: write n:m, two whole numbers, as in 2:4")
        return cls(int(n), int(m))

    @property
    def sparsity(self) -> Fraction:
        return 1 - Fraction(self.n, self.m)

    def keep_of(self, size: int) -> int:
        """How many it keeps of ``size`` weights in whole runs of m."""
        return size // self.m * self.n

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Budget: TypeAlias = Keep | Pattern


@dataclass(frozen=True)
class Group:
    """Weights that share one sparsity.

    :param size: How many prunable weights it has.
    :param score: How much the loss cares about it.
    :param layers: Names of its layers.
    :param floor: It keeps at least this many.
    :param cap: It keeps at most this many; None for all.
    """

    name: str
    size: int
    score: float
    layers: tuple[str, ...] = ()
    tower: str = field(default="", kw_only=True)
    floor: int = field(default=0, kw_only=True)
    cap: int | None = field(default=None, kw_only=True)

    @property
    def most(self) -> int:
        """The most it may keep: its cap, or all."""
        return self.size if self.cap is None else min(self.cap, self.size)


def exact(number: Number) -> Fraction:
    """A number as it is written, so that 0.1 is one tenth and not the float next to it."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def keep_count(size: int, sparsity: Number) -> int:
    """⌊size · (1 - sparsity)⌋, the sparsity read as an exact decimal: 0.9 of 10 leaves 1, not 0."""
    try:
        share = exact(sparsity)
    except (ValueError, ZeroDivisionError):
        raise EcoflapError(f"{sparsity!r} is no sparsity: write a number between 0 and 1, such as 0.5") from None
    if not 0 <= share <= 1:
        raise EcoflapError(f"sparsity is the share of weights that go, between 0 and 1; {sparsity} is not")
    return int(size * (1 - share) // 1)
