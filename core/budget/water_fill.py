"""Find counts that rise along lines and keep within bounds, and whole numbers that lose nothing in rounding."""

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction

from ecoflap.core.budget.counts import Group
from ecoflap.core.errors import EcoflapError


def water_fill(
    base: Sequence[int | float | Fraction],
    slope: Sequence[int | float | Fraction],
    lower: Sequence[int],
    upper: Sequence[int],
    total: int,
    names: Sequence[str],
) -> list[int]:
    """Give the counts clip(base_g + t · slope_g, lower_g, upper_g) of groups g, for the t at which they sum to a total.

    The equation is solved in fractions: the sum is linear between the points where a count meets a bound, so the piece
    that holds the total gives t without iteration. Then the counts are rounded down, and the largest remainders get
    what is left. Groups of slope 0 stay at their base; only when all others are at a bound do they share what is still
    missing, in proportion to their room.

    :param slope: How fast each group's count rises; at least 0.
    :param names: Names of the groups: the first in alphabetical order comes first where remainders are equal.
    :raises EcoflapError: Where a group's bounds cross, or all bounds together leave no room for the total.
    """
    _check_bounds(lower, upper, total, names)
    bases, slopes = [Fraction(b) for b in base], [Fraction(s) for s in slope]
    return _whole(_levels(bases, slopes, lower, upper, total), total, names)


def fill_groups(
    groups: Sequence[Group], base: Sequence[int | float | Fraction], slope: Sequence[int | float | Fraction], total: int
) -> list[int]:
    """Give each group a count between its floor and its cap; the rest is as in :func:`water_fill`."""
    lower, upper = [group.floor for group in groups], [group.most for group in groups]
    return water_fill(base, slope, lower, upper, total, [group.name for group in groups])


def _check_bounds(lower: Sequence[int], upper: Sequence[int], total: int, names: Sequence[str]) -> None:
    crossed = [
        f"{name} has to keep at least {low} weights and at most {high}, and no count is both"
        for name, low, high in zip(names, lower, upper, strict=True)
        if low > high
    ]
    if crossed:
        raise EcoflapError(*crossed)
    if sum(lower) > total:
        raise EcoflapError(
            f"the groups have to keep at least {sum(lower)} weights together, but the sparsity leaves only {total}: "
            "lower the sparsity"
        )
    if sum(upper) < total:
        raise EcoflapError(
            f"the groups may keep at most {sum(upper)} weights together, by what an earlier round has left of them or "
            f"by the allocator's own bounds, but the sparsity leaves {total}: raise the sparsity, or loosen these"
        )


def _levels(
    base: Sequence[Fraction], slope: Sequence[Fraction], lower: Sequence[int], upper: Sequence[int], total: int
) -> list[Fraction]:
    """Solve for the counts before they are rounded; they sum to the total."""
    groups = list(zip(base, slope, lower, upper, strict=True))

    def at(t: Fraction) -> list[Fraction]:
        return [min(max(b + t * s, Fraction(low)), Fraction(high)) for b, s, low, high in groups]

    def filled(t: Fraction) -> Fraction:
        return sum(at(t), Fraction(0))

    bends = sorted({(bound - b) / s for b, s, *bounds in groups if s for bound in bounds})
    right = bisect_left(bends, Fraction(total), key=filled)
    if 0 < right < len(bends):
        before, after = at(bends[right - 1]), at(bends[right])
        share = (total - filled(bends[right - 1])) / (filled(bends[right]) - filled(bends[right - 1]))
        return [a + share * (b - a) for a, b in zip(before, after, strict=True)]
    level = at(bends[-1 if right else 0] if bends else Fraction(0))
    missing = total - sum(level, Fraction(0))
    if not missing:
        return level
    room = [high - k if missing > 0 else k - low for k, low, high in zip(level, lower, upper, strict=True)]
    return [k + missing * r / sum(room, Fraction(0)) for k, r in zip(level, room, strict=True)]


def _whole(shares: Sequence[Fraction], total: int, names: Sequence[str]) -> list[int]:
    """Round shares to whole numbers of the same sum: all down, then those with the largest remainders up."""
    counts = [int(share // 1) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], names[i]))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def split(count: int, sizes: Sequence[int], names: Sequence[str], most: Sequence[int] | None = None) -> list[int]:
    """Split a group's count over its layers, in proportion to their sizes.

    The largest remainders are rounded up; where they are equal, the first names in alphabetical order. A layer that is
    full takes no more, and the others make up for that alike.

    :param most: The most that each layer may keep; all of it by default.
    :raises EcoflapError: Where the layers may not keep as many weights.
    """
    most = sizes if most is None else most
    if not 0 <= count <= sum(most):
        raise EcoflapError(f"{count} weights cannot be kept of the {sum(most)} in {', '.join(names) or 'no layer'}")
    return water_fill([0] * len(sizes), sizes, [0] * len(sizes), most, count, names)
