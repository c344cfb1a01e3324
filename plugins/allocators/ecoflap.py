"""The allocator ``ecoflap`` lets a group keep more weights where the loss cares more about it.

    k_g = min(n_g, (1 − p_M)·n_g + c·S_g),   with the c at which Σ k_g = K

n_g is a group's size, S_g its score, p_M the maximum sparsity and K the whole budget. Sung, Yoon & Bansal, ECoFLaP:
Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models, ICLR 2024, Eq. 2. The paper's code hands weights
out in rounds; this is where the rounds end, computed exactly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal

from ecoflap.core.budget.counts import Group, check_scores, exact, keep_count
from ecoflap.core.budget.water_fill import water_fill
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.errors import EcoflapError

_PAPERS = Fraction(1, 10)
"""How far the paper's maximum sparsity is above the sparsity."""


@dataclass(frozen=True)
class Ecoflap:
    """Give every group what the maximum sparsity leaves it, and share the rest in proportion to the scores.

    A group that is full, or at its cap, takes no more. Where no score is above 0, the groups' sizes stand in for them.

    :param max_sparsity: p_M: no group loses a larger share than this. The closer it is to the sparsity, the more alike
        the groups are.
    :param above: How far p_M is above the sparsity, where ``max_sparsity`` is not named: 0.1, the paper's, unless said.
        On the LLaVA in the box at 80 %, whose towers share a budget, 0.05 is better; on the BLIP-2 0.1 is.
    """

    max_sparsity: float | None = None
    above: float | None = None
    takes: ClassVar[Literal["number"]] = "number"

    def __post_init__(self) -> None:
        if self.max_sparsity is not None and not 0 <= self.max_sparsity <= 1:
            raise EcoflapError(f"max_sparsity is {self.max_sparsity}; it is a share between 0 and 1")
        if self.above is not None and not 0 <= self.above <= 1:
            raise EcoflapError(f"above is {self.above}; it is a difference of sparsities, from 0 to 1")
        if self.max_sparsity is not None and self.above is not None:
            raise EcoflapError(
                f"max_sparsity is {self.max_sparsity} and above {self.above}, and both say the most that a group "
                f"loses: remove one of them"
            )

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say where the maximum sparsity is below the recipe's sparsity, or a tower's own."""
        towers = {name: tower for name, tower in context.recipe.towers.items() if tower != "keep"}
        asked = {"": context.recipe.sparsity, **{f"towers.{name}: ": tower.sparsity for name, tower in towers.items()}}
        for where, sparsity in asked.items():
            if self.max_sparsity is not None and isinstance(sparsity, float) and self.max_sparsity < sparsity:
                yield where + _too_low(self.max_sparsity, sparsity)

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        check_scores(groups, "a score is finite and at least 0", lambda score: score >= 0)
        lower = self._lower(groups, keep)
        scores = [group.score for group in groups] if any(g.score for g in groups) else [group.size for group in groups]
        return water_fill(lower, scores, lower, [group.most for group in groups], keep, [g.name for g in groups])

    def _lower(self, groups: Sequence[Group], keep: int) -> list[int]:
        """Give what each group starts with: rounded up as in the paper, unless that is more than ``keep`` in all."""
        total = sum(group.size for group in groups)
        sparsity = 1 - Fraction(keep, total or 1)
        above = _PAPERS if self.above is None else exact(self.above)
        highest = min(Fraction(1), sparsity + above) if self.max_sparsity is None else exact(self.max_sparsity)
        if keep_count(total, highest) > keep:
            raise EcoflapError(_too_low(float(highest), float(sparsity)))
        lower = [group.clamp(ceil((1 - highest) * group.size)) for group in groups]
        if sum(lower) > keep:
            lower = [group.clamp(keep_count(group.size, highest)) for group in groups]
        return lower


def _too_low(max_sparsity: float, sparsity: float) -> str:
    return (
        f"max_sparsity {max_sparsity:.6g} is below the sparsity {sparsity:.6g}, which the groups cannot reach then: "
        f"raise it (the paper takes {min(1.0, sparsity + 0.1):.6g}) or leave it out"
    )


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"ecoflap": Ecoflap}
