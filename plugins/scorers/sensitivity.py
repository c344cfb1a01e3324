"""The scorer ``sensitivity`` measures how much the loss rises where one block alone is pruned, at several sparsities.

    ΔL_b(s) = mean over batches of L(W_b pruned to s) − L(W),   s on a ladder of levels

All other blocks are dense. The curves of blocks do not add up to the loss of a model in which all are pruned; they tell
blocks apart, and ``allocate: marginal`` divides a budget by them.

Han, Pool, Tran & Dally, Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, section 5
and figure 6, measured layers so, one at a time and by magnitude, and chose each layer's threshold by it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ecoflap.core.budget.counts import keep_count
from ecoflap.core.budget.curves import Curve, check_levels
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.options import PrunerOptions
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Pruner
from ecoflap.core.contracts.records import Aggregate, ScoreKind, Statistics
from ecoflap.core.errors import NotFiniteError, refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.core.recipe.rounds import shares_of_rounds
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block
from ecoflap.plugins.scorers.shared.held import held_with_statistics
from ecoflap.plugins.scorers.shared.pruned_alone import pruned_alone


@dataclass(frozen=True)
class Sensitivity:
    """Score blocks by curves: the rise of the loss with the sparsity of this block alone, by forwards alone.

    The model computes as the run does, since what pruning does to a loss is larger than what bfloat16 rounds away.

    :param levels: The sparsities that are tried, from the lowest to the highest.
    :param samples: How many calibration samples it looks at. A few short texts tell blocks apart; of questions about
        images 32 do not, from one draw of them to the next, and 128 do.
    :param prune: The pruner that is tried. It need not be the recipe's: a cheap one tells blocks apart as well.
    :param joint: True prunes all matrices of a block at once, False one matrix at a time, which takes as many times
        more forwards as a block has matrices.
    """

    levels: tuple[float, ...] = (0.4, 0.6, 0.8)
    samples: int = 32
    prune: Pruner = field(default_factory=Wanda)
    joint: bool = True

    aggregate: ClassVar[Aggregate] = "sum"
    gives: ClassVar[ScoreKind] = "curve"
    dtype: ClassVar[Literal["model"]] = "model"
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_levels(self.levels)
        refuse_below_one("samples", self.samples)

    @property
    def unit(self) -> Literal["layer", "block"]:
        """Say what the yielded names stand for: a block where all of its matrices are pruned together."""
        return "block" if self.joint else "layer"

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say which levels ask for no more than earlier rounds have pruned in the mean: no loss would rise at them."""
        recipe = context.recipe
        if recipe.round_count == 1 or recipe.sparsity is None:
            return
        gone, last = shares_of_rounds(recipe.rounds, recipe.sparsity)[-2:]
        past = [level for level in self.levels if level <= gone]
        if past:
            above = [round(gone + (1 - gone) * part, 2) for part in (0.25, 0.5, 0.75)]
            yield (
                f"levels {', '.join(f'{level:g}' for level in past)} are no more than the {gone:g} that is gone before "
                f"the last round, which asks for {last:g}: little or nothing rises there. Take higher ones, such as "
                f"{above}"
            )

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count the forwards, each of which runs from the pruned block on, and one of the dense model a batch."""
        units = len(anatomy.blocks) if self.joint else sum(1 for _ in anatomy.layers())
        return batches * (1 + units * len(self.levels))

    def held_numbers(self, anatomy: Anatomy) -> int:
        """Count the block's statistics, what the pruner holds of a layer, and the weights that are put back."""
        pruner = options_of(PrunerOptions, self.prune)
        put_back = max((sum(layer.size for layer in layers) for layers in anatomy.layers_of.values()), default=0)
        return put_back + held_with_statistics(anatomy, pruner.needs, pruner.held_numbers)

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, Curve]]:
        needs = options_of(PrunerOptions, self.prune).needs
        dense = None
        for index, block, mine in block_by_block(replay, layers):
            if dense is None:  # the same from every block on: all before it are answered from the record
                dense = float(replay.loss(index).mean())
            seen = replay.run(index, needs) if needs else {}
            units = {block.name: mine} if self.joint else {layer.name: [layer] for layer in mine}
            for name, pruned in units.items():
                passed = tuple(self._passed(name, pruned))
                losses, notes = self._tried(replay, index, name, pruned, seen)
                yield name, Curve(self.levels, tuple(loss - dense for loss in losses), (*passed, *notes))

    def _passed(self, name: str, layers: Sequence[Layer]) -> Iterator[str]:
        """Say which levels ask for no more than is zero already, as where a round took more of a block than of others.

        :param name: That of the block or of the layer which the layers are.
        """
        gone = [(layer.size, layer.size - int(layer.weight.count_nonzero())) for layer in layers]
        at = [level for level in self.levels if all(size - keep_count(size, level) <= zeros for size, zeros in gone)]
        if at:
            share = sum(zeros for _, zeros in gone) / sum(size for size, _ in gone)
            past = ", ".join(f"{level:g}" for level in at)
            yield (
                f"{name}: {share:.2f} of it is zero already, so that little or nothing rises at {past}, and its "
                f"curve says little. Take higher levels"
            )

    def _tried(
        self, replay: Replay, index: int, name: str, layers: Sequence[Layer], seen: Mapping[str, Statistics]
    ) -> tuple[list[float], tuple[str, ...]]:
        """Give the loss at each level, and what there is to say of how it came about.

        :param name: That of the block or of the layer which the layers are.
        """
        losses, notes = [], dict[str, None]()
        for level in self.levels:
            with pruned_alone(replay, index, layers, self.prune, seen, level) as noted:
                notes.update(dict.fromkeys(noted))
                try:
                    losses.append(float(replay.loss(index).mean()))
                except NotFiniteError as error:
                    raise NotFiniteError(
                        f"{name}: pruned alone to a sparsity of {level:g} it has no finite loss, and a curve has no "
                        f"other points: {error}. Leave this level out of score.levels, or choose another score.prune"
                    ) from error
        return losses, tuple(notes)


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[Sensitivity]]:
    return {"sensitivity": Sensitivity}
