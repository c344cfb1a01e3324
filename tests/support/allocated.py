"""Random problems for allocators: groups with floors and caps, and how many weights they keep together."""

import math
from typing import Any, TypeAlias

from hypothesis import strategies as st

from ecoflap.core.budget.counts import Group, keep_count

Problem: TypeAlias = tuple[list[tuple[int, float, int, int | None]], float]
"""Each group's size, score, floor and cap, and the sparsity."""


@st.composite
def problems(
    draw: Any, scores: st.SearchStrategy[float], least_cap: float, share_of_floor: int, lowest: float
) -> Problem:
    """Draw plain numbers: a checked class may look at random items, which a strategy must not.

    :param least_cap: The smallest share of a group that its cap may be.
    :param share_of_floor: A floor is at most one of so many parts of a group.
    :param lowest: The lowest of the sparsities.
    """
    rows = []
    for _ in range(draw(st.integers(1, 8))):
        size = draw(st.integers(1, 100_000))
        cap = draw(st.none() | st.integers(math.ceil(least_cap * size), size))
        rows.append((size, draw(scores), draw(st.integers(0, size // share_of_floor)), cap))
    return rows, draw(st.sampled_from([lowest, 0.5, 0.7]))


def posed(problem: Problem) -> tuple[list[Group], int]:
    """Give the groups of a problem, and how many weights they keep."""
    rows, sparsity = problem
    groups = [Group(f"b{i}", n, score, floor=floor, cap=cap) for i, (n, score, floor, cap) in enumerate(rows)]
    return groups, keep_count(sum(group.size for group in groups), sparsity)
