"""The allocator ``marginal`` prunes each group until its next weight would cost as much loss as any other group's.

    minimise Σ ΔL_g(s_g)   with   Σ n_g·s_g = N·s,   s − below ≤ s_g ≤ s + above

ΔL_g(s) = exp(a_g + b_g·s) is fitted to the group's curve by least squares of ln ΔL. A weight of group g then costs
b_g·exp(a_g + b_g·s_g)/n_g, and where all of them cost λ,

    s_g = (ln λ + ln(n_g / b_g) − a_g) / b_g

which is linear in ln λ, so that the counts, their bounds and their sum are met exactly without iteration. It is the
condition of Lagrange for convex costs; the curves are those of the scorer ``sensitivity``. That the costs of groups add
up is an assumption, which the bounds keep from going far.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import log
from typing import ClassVar, Literal

import numpy as np

from ecoflap.core.budget.counts import Group, exact, keep_count
from ecoflap.core.budget.curves import Curve
from ecoflap.core.budget.water_fill import water_fill
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError, first_of

_SMALLEST_RISE = 1e-4
"""Of a loss in nats: below it a measured difference is rounding and choice of samples, and may be negative."""
_LEAST_SLOPE = 0.5
"""Of ln ΔL: a curve that does not rise would otherwise send its group to a bound by its noise alone."""


@dataclass(frozen=True)
class Marginal:
    """Give groups sparsities at which a further weight raises the loss by equally much in each.

    :param below: A group's sparsity is at most this much below the recipe's.
    :param above: A group's sparsity is at most this much above the recipe's. What single blocks bear does not add up,
        so that the guard matters more than the curves at high sparsity.
    """

    below: float = 0.2
    above: float = 0.1
    takes: ClassVar[Literal["curve"]] = "curve"

    def __post_init__(self) -> None:
        for name in ("below", "above"):
            if not 0 <= getattr(self, name) <= 1:
                raise EcoflapError(f"{name} is {getattr(self, name)}; it is a difference of sparsities, from 0 to 1")

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        fits = [_fit(curve) for curve in _curves(groups)]
        base = [g.size * (1 + (a + log(b / g.size)) / b) for g, (a, b) in zip(groups, fits, strict=True)]
        slope = [g.size / b for g, (_, b) in zip(groups, fits, strict=True)]  # of the count kept with −ln λ
        lower, upper = zip(*self._bounds(groups, keep), strict=True)
        return water_fill(base, slope, lower, upper, keep, [group.name for group in groups])

    def _bounds(self, groups: Sequence[Group], keep: int) -> Iterator[tuple[int, int]]:
        """Yield the least and the most that each group keeps; rounded so that all together leave room for ``keep``."""
        sparsity = 1 - Fraction(keep, sum(group.size for group in groups) or 1)
        highest, lowest = min(Fraction(1), sparsity + exact(self.above)), max(Fraction(0), sparsity - exact(self.below))
        for group in groups:
            least, most = keep_count(group.size, highest), group.size - int(group.size * lowest)
            yield group.clamp(least), group.clamp(most)


def _curves(groups: Sequence[Group]) -> list[Curve]:
    """Give the groups' curves."""
    missing = [group.name for group in groups if group.curve is None]
    if missing:
        raise EcoflapError(f"marginal needs a curve of each group, and has none of {first_of(missing, 5)}")
    return [group.curve for group in groups if group.curve is not None]


def _fit(curve: Curve) -> tuple[float, float]:
    """Fit ln ΔL = a + b·s by least squares."""
    logs = np.log(np.maximum(curve.rises, _SMALLEST_RISE))
    levels = np.asarray(curve.levels)
    offset = levels - levels.mean()
    b = max(float((offset * logs).sum() / (offset**2).sum()), _LEAST_SLOPE)
    return float(logs.mean() - b * levels.mean()), b


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"marginal": Marginal}
