"""The allocator ``owl`` lets a group keep more weights where its inputs have more outliers.

    share kept of g = (1 − s) + r_g − mean(r),   r_g = 2λ·(D_g − min D) / (max D − min D)

s is the sparsity, and D_g the group's outlier share, which the scorer ``outlier_share`` yields. Yin et al., Outlier
Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity, ICML 2024.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from ecoflap.core.budget.counts import Group, check_scores, exact
from ecoflap.core.budget.water_fill import fill_groups
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError


@dataclass(frozen=True)
class Owl:
    """Spread the groups' sparsities by their outlier shares.

    The paper's blocks are of equal size. Here the mean of r is weighted by size, so that the budget is met whatever the
    sizes are. Shares beyond a floor or cap are cut, and all others move together to make up for it.

    :param spread: The paper's λ: no two groups differ by more than 2λ in sparsity.
    """

    spread: float = 0.08
    takes: ClassVar[Literal["number"]] = "number"
    scorers: ClassVar[tuple[str, ...]] = ("outlier_share",)

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 1:
            raise EcoflapError(f"spread, the paper's λ, is {self.spread}; it is a share between 0 and 1")

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        sizes = [group.size for group in groups]
        total = sum(sizes) or 1
        raised = self._raised(groups)
        mean = sum((r * n for r, n in zip(raised, sizes, strict=True)), Fraction(0)) / total
        base = [n * (Fraction(keep, total) + r - mean) for r, n in zip(raised, sizes, strict=True)]
        return fill_groups(groups, base, sizes, keep)

    def _raised(self, groups: Sequence[Group]) -> list[Fraction]:
        """Compute each group's r_g exactly: how much more of it is kept than of the one with the lowest score."""
        check_scores(groups, "a score is finite")
        scores = [Fraction(group.score) for group in groups]
        low, high = min(scores, default=Fraction(0)), max(scores, default=Fraction(0))
        return [2 * exact(self.spread) * (score - low) / (high - low or 1) for score in scores]


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"owl": Owl}
