"""The allocator ``best_of`` tries several allocators, and takes the one whose pruned model loses least.

    (g*, t*) = argmin over candidates g and tokens t of L(model pruned by the plan of g and t, held-out batches)

The model is pruned by each candidate's plan, with the recipe's own pruner, on all calibration batches but the last
ones, on which the loss is then looked at. Budgets by scores of single blocks can be worse than none, and statistics of
text alone better or worse than those of images too; this finds out. With ``refine`` its blocks are refined as well:
what a candidate is better by may be less then, or turn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecoflap.core.budget.counts import Group
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import AllocatorOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Allocator
from ecoflap.core.contracts.records import SCORES_CALLED, ScoreKind, TokenChoice
from ecoflap.core.errors import EcoflapError


@dataclass(frozen=True)
class BestOf:
    """Try candidates by pruning, and take the first of those with the smallest loss. It holds a copy of the weights
    that the model has in memory.

    :param of: The candidates. One that needs no score, such as ``uniform``, is what others have to be better than.
    :param held_out: The share of the calibration batches that is held out, at least one of them.
    :param tokens: Which tokens count in statistics: choices that each candidate is tried by, such as ``[real, text]``,
        in the place of the recipe's ``tokens``. A tower with its own keeps that. Empty, none are tried.
    :param refine: Whether the recipe's refiners of blocks refine each candidate's blocks, too. Those of the whole model
        are not run.
    """

    of: tuple[Allocator, ...]
    held_out: float = 0.25
    tokens: tuple[TokenChoice, ...] = ()
    refine: bool = False

    def __post_init__(self) -> None:
        if len(self.of) * max(1, len(self.tokens)) < 2:
            raise EcoflapError(f"of has {len(self.of)} candidates; name two or more, as in of: [uniform, ecoflap]")
        if len(self.tokens) == 1 or len(set(self.tokens)) < len(self.tokens):
            raise EcoflapError(
                f"tokens is [{', '.join(self.tokens)}]; name two or more that differ, as in tokens: [real, text]"
            )
        if not 0 < self.held_out < 1:
            raise EcoflapError(f"held_out is {self.held_out}; it is a share between 0 and 1")
        if any(isinstance(allocator, BestOf) for allocator in self.of):
            raise EcoflapError("of has a best_of among its candidates: name that one's candidates here")
        if len(self._kinds()) > 1:
            kinds = " and ".join(sorted(SCORES_CALLED[kind] for kind in self._kinds()))
            raise EcoflapError(f"of has candidates that look at {kinds}; a recipe has one score, of one kind")
        if self._wanted() and not self.scorers:
            wanted = " and of ".join(sorted({name for names in self._wanted() for name in names}))
            raise EcoflapError(f"of has candidates that read the scores of {wanted}; a recipe has one scorer")

    @property
    def candidates(self) -> tuple[Any, ...]:
        """Give those that the engine tries."""
        return self.of

    @property
    def takes(self) -> ScoreKind | None:
        """Say which kind of scores the candidates take; None where none takes any."""
        return next(iter(self._kinds()), None)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Name the scorers whose scores every candidate accepts that accepts those of some alone."""
        wanted = self._wanted()
        return tuple(name for name in wanted[0] if all(name in names for names in wanted)) if wanted else ()

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what a recipe lacks for trials, such as calibration data to hold some of out, or has in vain."""
        if self.tokens and context.recipe.tokens != "real":
            yield (
                f"it tries {', '.join(self.tokens)} tokens, and the recipe has tokens: {context.recipe.tokens}, which "
                f"would be passed over. Remove one of them"
            )
        pruned = [tower.name for tower in context.anatomy.towers if context.recipe.towers.get(tower.name) != "keep"]
        if self.refine and not any(map(context.recipe.block_refiners_of, pruned)):
            yield (
                "it has refine: true, and the recipe has no refiner of blocks, so that nothing would be refined. "
                "Remove it, or add one, as in refine: reconstruct"
            )
        keys = context.recipe.calibration
        if keys is None:
            yield "it looks at the loss of calibration data, and the recipe has none: add calibration:"
        elif keys.data.options.samples is not None and keys.data.options.samples <= keys.batch_size:
            yield (
                f"it holds calibration batches out, and {keys.data.options.samples} samples in batches of "
                f"{keys.batch_size} are one: set calibration.samples higher, or calibration.batch_size lower"
            )

    def __call__(self, groups: Sequence[Group], keep: int) -> list[int]:
        """Give the counts of the first candidate: without a model none can be tried, and the others have to beat it."""
        return self.of[0](groups, keep)

    def _wanted(self) -> list[tuple[str, ...]]:
        """Give the names of scorers for each candidate that reads the scores of some alone."""
        found = (options_of(AllocatorOptions, allocator).scorers for allocator in self.of)
        return [names for names in found if names]

    def _kinds(self) -> set[ScoreKind]:
        found = (options_of(AllocatorOptions, allocator).takes for allocator in self.of)
        return {takes for takes in found if takes is not None}


@hookimpl
def ecoflap_register_allocators() -> Mapping[str, Callable[..., Allocator]]:
    return {"best_of": BestOf}
