"""What the stages of one run share: :class:`RunState`, and what a round leaves to the next one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ecoflap.core.contracts.records import Batch
from ecoflap.core.export.stage import missing_exports
from ecoflap.core.forward.replay import Replay
from ecoflap.core.planning.plan import Plan
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.pruning.masks import PackedMasks
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.schema import CalibrationKeys, Recipe
from ecoflap.core.record.evaluations import Evaluation
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.run.data import RunData
from ecoflap.core.run.run_model import RunModel


@dataclass(frozen=True)
class RoundDone:
    """Holds what a round leaves to the next one.

    :param plan: Of which no layer keeps more afterwards.
    :param masks: What they prune does not come back.
    """

    plan: Plan
    masks: PackedMasks


@dataclass(frozen=True)
class RunState:
    """All that the stages of one run share.

    :param prepared: The recipe with its model taken apart.
    :param folder: What is done is there already, and need not be done again.
    :param accept_change: Go on although data or versions of libraries changed since the run was begun.
    :param before: The round before; None in the first, which most runs have alone.
    :param dense_weights: Those of the model before anything was pruned, where somebody looks at them later.
    :param number: Which round it is; None in the last, whose stages are the run's own.
    :param ranks: The processes that do the run. The first decides what is to be done, and writes.
    """

    prepared: Prepared
    folder: RunFolder
    log: RunLog
    model: RunModel
    data: RunData
    accept_change: bool = False
    before: RoundDone | None = None
    dense_weights: Mapping[str, Tensor] = field(default_factory=dict)
    number: int | None = None
    ranks: Ranks = ALONE

    @property
    def recipe(self) -> Recipe:
        """Give what is to be run."""
        return self.prepared.recipe

    @property
    def left(self) -> PackedMasks:
        """Give the masks that the round before has left; none in the first."""
        return self.before.masks if self.before else PackedMasks()

    @property
    def weights_before_rounds(self) -> Mapping[str, Tensor]:
        """Give what weights were before the first round, where somebody looks at them; none in that, which has them."""
        return self.dense_weights if self.before else {}

    def stage(self, name: str) -> str:
        """Name a stage of this round."""
        return stage_of_round(name, self.number)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Give the recipe's evaluators, in order."""
        return tuple(map(Evaluation, self.recipe.evaluate))

    @cached_property
    def missing_exports(self) -> list[str]:
        """Name the exports that are not all there. All of their files are read for it, and so once.

        All processes ask together, as of :attr:`is_pruned` and by :meth:`to_evaluate`: the first tells the others.
        """
        return self.ranks.first(lambda: missing_exports(self.folder, self.recipe))

    @property
    def is_pruned(self) -> bool:
        """Say whether the pruned model is complete."""
        return self.ranks.first(lambda: self.folder.is_pruned)

    def to_evaluate(self, stage: str) -> list[Evaluation]:
        """Give those that have not yet looked at the dense or the pruned model."""
        done = self.ranks.first(lambda: [one.is_done(self.folder.evaluations, stage) for one in self.evaluations])
        return [one for one, is_done in zip(self.evaluations, done, strict=True) if not is_done]

    def replay(
        self,
        batches: Sequence[Batch],
        keys: CalibrationKeys | None,
        dtype: torch.dtype | None = None,
        ranks: Ranks | None = None,
        spare: int = 0,
    ) -> Replay:
        """Make a replay of the model on these batches.

        :param keys: Of the calibration that they are of.
        :param dtype: The least precision that it computes in; that of the run by default.
        :param ranks: The processes that share the batches; None for those of the run.
        :param spare: Bytes of memory that it may spend on being quicker.
        """
        model, adapter = self.model.get(), self.prepared.adapter
        return Replay(
            model,
            adapter,
            batches,
            anatomy=self.model.anatomy,
            seed=self.recipe.seed,
            dtype=dtype or self.model.held_in,
            device=self.model.visits,
            keep_in=self.folder.path if keys is not None and keys.keep == "disk" else None,
            ranks=ranks or self.ranks,
            spare=spare,
        )


def stage_of_round(name: str, number: int | None) -> str:
    """Name a stage of a round; that of the last as it is called."""
    return name if number is None else f"{name}, round {number}"
