"""More weights where the loss cares more: k_g = min(n_g, (1 - p_M) n_g + c S_g), Σ k_g = K.

Sung, Yoon & Bansal, ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models (ICLR 2024), Eq. 2
with the maximum sparsity p_M. The paper's code hands weights out in rounds; this is where the rounds end, exactly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, isfinite
from typing import Any, ClassVar

from ecoflap.core.budget.counts import Group, exact, keep_count
from ecoflap.core.budget.water_fill import water_fill
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError
from ecoflap.core.model.anatomy import Anatomy


@dataclass(frozen=True)
class Ecoflap:
    """Every group starts with what max_sparsity p_M leaves it; the rest is shared in proportion to the scores S_g.

    A group that is full, or at its cap, takes no more. Where no score is above 0, the sizes n_g stand in for them.

    :param max_sparsity: No group loses a larger share; None is the paper's choice, the sparsity plus 0.1. The closer to
        the sparsity, the more alike the groups.
    """

    max_sparsity: float | None = None
    takes: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        if self.max_sparsity is not None and not 0 <= self.max_sparsity <= 1:
            raise EcoflapError(f"max_sparsity is a share between 0 and 1; {self.max_sparsity} is not")

    def problems(self, anatomy: Anatomy, recipe: Any) -> Iterator[str]:
        if self.max_sparsity is not None and recipe.sparsity is not None and self.max_sparsity < recipe.sparsity:
            yield _too_low(self.max_sparsity, recipe.sparsity)

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        _check_scores(groups)
        lower = self._lower(groups, keep)
        scores = [group.score for group in groups] if any(g.score for g in groups) else [group.size for group in groups]
        return water_fill(lower, scores, lower, [group.most for group in groups], keep, [g.name for g in groups])

    def _lower(self, groups: Sequence[Group], keep: int) -> list[int]:
        """What each group starts with; rounded up, as in the paper, unless that alone is more than there is."""
        total = sum(group.size for group in groups)
        sparsity = 1 - Fraction(keep, total or 1)
        highest = (
            min(Fraction(1), sparsity + Fraction(1, 10)) if self.max_sparsity is None else exact(self.max_sparsity)
        )
        if keep_count(total, highest) > keep:
            raise EcoflapError(_too_low(float(highest), float(sparsity)))
        lower = [_between(group, ceil((1 - highest) * group.size)) for group in groups]
        if sum(lower) > keep:
            lower = [_between(group, keep_count(group.size, highest)) for group in groups]
        return lower


def _between(group: Group, count: int) -> int:
    return max(group.floor, min(count, group.most))


def _check_scores(groups: Sequence[Group]) -> None:
    wrong = [group for group in groups if not (isfinite(group.score) and group.score >= 0)]
    if wrong:
        raise EcoflapError(*(f"the score of {g.name} is {g.score}: a score is finite and at least 0" for g in wrong))


def _too_low(max_sparsity: float, sparsity: float) -> str:
    return (
        f"max_sparsity {max_sparsity:.6g} is below the sparsity {sparsity:.6g}, which no groups can reach then: "
        f"raise it (the paper takes {min(1.0, sparsity + 0.1):.6g}) or leave it out"
    )


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"ecoflap": Ecoflap}
