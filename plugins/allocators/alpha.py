"""The allocator ``alpha`` maps the exponents of spectra linearly to sparsities: the heavier the tail, the lower.

    s_g = η·(1 − τ + 2τ·(α_g − min α) / (max α − min α)),   with the η at which Σ n_g·s_g = N·s

α_g is the reciprocal of the group's score, which the scorer ``hill`` yields. Lu, Zhou, Liu, Wang, Mahoney & Yang,
AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of Large Language Models,
NeurIPS 2024, whose code calls τ ``epsilon``.
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
class Alpha:
    """Spread the groups' sparsities by the exponents of their spectra.

    Sparsities beyond a floor or cap are cut, and η grows to make up for it.

    :param spread: The paper's τ: before bounds no sparsity is more than (1 + τ)/(1 − τ) times another.
    """

    spread: float = 0.3
    takes: ClassVar[Literal["number"]] = "number"
    scorers: ClassVar[tuple[str, ...]] = ("hill",)

    def __post_init__(self) -> None:
        if not 0 <= self.spread < 1:
            raise EcoflapError(f"spread, the paper's τ, is {self.spread}; it is a share from 0 to below 1")

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        sizes = [group.size for group in groups]
        slope = [size * ratio for size, ratio in zip(sizes, self._ratios(groups), strict=True)]  # of the kept with −η
        return fill_groups(groups, sizes, slope, keep)

    def _ratios(self, groups: Sequence[Group]) -> list[Fraction]:
        """Compute each group's sparsity but for η, exactly."""
        check_scores(groups, "1/α is finite and above 0", lambda score: score > 0)
        alphas = [1 / Fraction(group.score) for group in groups]
        low, high = min(alphas, default=Fraction(0)), max(alphas, default=Fraction(0))
        spread = exact(self.spread)
        return [1 - spread + 2 * spread * (alpha - low) / (high - low or 1) for alpha in alphas]


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"alpha": Alpha}
