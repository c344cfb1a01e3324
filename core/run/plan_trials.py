"""Tries plans on the model: prunes it by each, and looks at the loss of batches that were held out."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ecoflap.core.budget.counts import exact
from ecoflap.core.contracts.events import Progress
from ecoflap.core.contracts.records import Batch, TokenChoice
from ecoflap.core.errors import NotFiniteError, RecipeError
from ecoflap.core.forward.placement import outside_held, restored
from ecoflap.core.forward.replay import Replay
from ecoflap.core.planning.plan import Plan
from ecoflap.core.pruning.finished_weights import FinishedWeights
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.refining.dense_block import targets_of
from ecoflap.core.sealing.sealed_lines import append_line, read_lines

_LINE = {"candidate": str, "plan": str}
_WAY_OUT = "Set sparsity lower, take another pruner, or write model.dtype: float32 where the model is of float16"


class _Outcome(NamedTuple):
    """Holds what a trial found.

    :param loss: On the held-out batches; None where the pruned model has none that is finite.
    :param why: Where it has none, what is not finite.
    """

    loss: float | None
    why: str = ""


@dataclass(frozen=True)
class PlanTrials:
    """Prunes a model by several plans, one after the other; afterwards its weights are what they were, bit for bit.

    What a trial found is kept as a line in the run folder, and its finished blocks until then, so that a run that was
    cut off goes on where it was. Of a model in memory a copy is held meanwhile. One that stays in its files is mapped
    from the trial's, and afterwards from where it was.

    :param replay: Makes a replay of the model on some batches, shared by all processes or by those it is given.
    :param batches: Those that the run prunes by; the last of them are held out here.
    :param held_out: The share of them that is held out; one at least.
    :param refiners_of: The refiners of each tower's blocks, where these are tried too.
    :param tokens: Gives which tokens count in statistics, by tower, of a plan's choice.
    :param left: The masks of the round before, within which trials prune.
    :param dense_weights: The weights that layers had before the first round, for pruners that ask for them.
    :param sequential: Whether statistics are taken again before each group of a block's layers.
    :param finished_weights: Gives what takes finished blocks out of memory into a folder; None where the model is in
        memory.
    :param ranks: The processes of the run.
    """

    replay: Callable[..., Replay]
    batches: Sequence[Batch]
    held_out: float
    pruners: Mapping[str, PartSpec]
    folder: RunFolder
    log: RunLog
    _: KW_ONLY
    refiners_of: Mapping[str, Sequence[PartSpec]] = field(default_factory=dict)
    tokens: Callable[[TokenChoice | None], Mapping[str, TokenChoice]] = lambda taken: {}
    left: Mapping[str, Tensor] = field(default_factory=dict)
    dense_weights: Mapping[str, Tensor] = field(default_factory=dict)
    sequential: bool = False
    finished_weights: Callable[[Path], FinishedWeights | None] = lambda folder: None
    ranks: Ranks = ALONE

    def best(self, plans: Mapping[str, Plan]) -> Plan:
        """Give the plan with the smallest loss; of equal ones the first. One without a finite loss is never taken.

        :param plans: By the candidates' labels.
        :raises NotFiniteError: Where none of them has a finite loss.
        """
        found: dict[str, _Outcome] = {}
        for number, (label, plan) in enumerate(plans.items()):
            self.log.emit(Progress("allocate", number, len(plans), "candidates"))
            known = self.ranks.first(partial(self._known, plan))
            found[label] = self._tried(label, plan) if known is None else known
            self.ranks.at_first(partial(shutil.rmtree, self._blocks_of(plan), ignore_errors=True))
        self.log.emit(Progress("allocate", len(plans), len(plans), "candidates"))
        self.ranks.at_first(lambda: shutil.rmtree(self._blocks, ignore_errors=True))
        return plans[self._taken(found)]

    def _taken(self, found: Mapping[str, _Outcome]) -> str:
        """Choose a candidate, and tell what was found of all."""
        losses = {label: one.loss for label, one in found.items() if one.loss is not None}
        failed = [
            f"the model pruned by {label} has no finite loss: {one.why}" for label, one in found.items() if one.why
        ]
        if not losses:
            raise NotFiniteError(*(f"allocate: {sentence}. {_WAY_OUT}" for sentence in failed))
        taken = min(losses, key=lambda label: losses[label])
        told = ", ".join(f"{label} {loss:.6g}" for label, loss in losses.items())
        self.log.note(f"allocate: losses on {len(self._held_out)} held-out batches are {told}; {taken} was taken")
        for sentence in failed:
            self.log.note(f"allocate: {sentence}, so it was not taken")
        return taken

    @property
    def _held_out(self) -> Sequence[Batch]:
        count = held_out_of(len(self.batches), self.held_out)
        if count >= len(self.batches):
            raise RecipeError(
                f"allocate: candidates are tried on calibration batches that are held out, and there are only "
                f"{len(self.batches)}. Set calibration.samples higher, or calibration.batch_size lower"
            )
        return self.batches[-count:]

    @property
    def _blocks(self) -> Path:
        return self.folder.blocks / "trials"

    def _blocks_of(self, plan: Plan) -> Path:
        return self._blocks / _digest(plan)[:16]

    def _known(self, plan: Plan) -> _Outcome | None:
        """Give what an earlier process, or another candidate with the same plan, has found."""
        lines = read_lines(self.folder.trials, _LINE) if self.folder.trials.is_file() else []
        return next(
            (_Outcome(line["loss"], line.get("why", "")) for line in lines if line["plan"] == _digest(plan)), None
        )

    def _tried(self, label: str, plan: Plan) -> _Outcome:
        found = self._pruned(plan)
        line = {"candidate": label, "plan": _digest(plan), **found._asdict()}
        self.ranks.at_first(lambda: append_line(self.folder.trials, line))
        return found

    def _pruned(self, plan: Plan) -> _Outcome:
        """Prune the model by a plan, for as long as its loss is looked at."""
        training = self.batches[: -len(self._held_out)]
        replay = self.replay(training)
        targets = targets_of(one.options for refiners in self.refiners_of.values() for one in refiners)
        dense = self.replay(training, spare=0) if "dense" in targets else None
        layers = [layer for _, layer in replay.anatomy.layers() if layer.name in plan.layers]
        finished_weights = self.finished_weights(self._blocks_of(plan))
        outside = outside_held(replay.model, replay.anatomy, replay.placement)
        with outside, restored(layers) if finished_weights is None else finished_weights.putting_back():
            pruning = BlockwisePruning(
                replay,
                plan,
                self.pruners,
                self._blocks_of(plan),
                lambda event: None,
                refiners_of=self.refiners_of,
                dense=dense,
                sequential=self.sequential,
                tokens_of=self.tokens(plan.tokens),
                left=self.left,
                dense_weights=self.dense_weights,
                finished_weights=finished_weights,
            )
            try:
                pruning()
            except NotFiniteError as error:
                return _Outcome(None, str(error))
            return self.ranks.first(self._looked_at)  # the batches may be fewer than the processes are

    def _looked_at(self) -> _Outcome:
        """Take the loss of the model as it is, in this process alone."""
        try:
            return _Outcome(float(self.replay(self._held_out, ranks=ALONE).loss(0).mean()))
        except NotFiniteError as error:
            return _Outcome(None, str(error))


def _digest(plan: Plan) -> str:
    """Tell plans apart by what layers keep and by their tokens; that two call groups otherwise changes nothing."""
    kept = {name: layer.keep for name, layer in plan.layers.items()}
    return sha256(json.dumps([kept, plan.tokens] if plan.tokens else kept).encode()).hexdigest()


def held_out_of(batches: int, share: float) -> int:
    """Count the batches that candidates are tried on."""
    return max(1, int(exact(share) * batches))
