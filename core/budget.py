"""Exact integer budgets: how many weights are kept, spread over groups, layers and rows without losing one."""

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class Keep:
    """Exactly ``count`` weights of a layer are kept."""

    count: int


@dataclass(frozen=True)
class Pattern:
    """``n`` weights are kept of every ``m`` consecutive inputs of a row; ``Pattern(2, 4)`` is NVIDIA's 2:4.

    The literature disagrees: Wanda's and SparseGPT's ``prune_n`` counts the pruned ones. Here, as in the name "N:M
    sparsity", n are kept.
    """

    n: int
    m: int


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
