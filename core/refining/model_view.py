"""The pruned model as a refiner sees it: its loss on each batch, and how far its logits are from the dense model's."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.contracts.adapter_answers import loss_of
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.placement import Placement
from ecoflap.core.forward.recomputed import recomputed_blocks
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.refining.logits import DenseLogits, Divergence, kl_of_rows
from ecoflap.core.refining.optimiser_files import state_on_disk
from ecoflap.core.refining.views import RefinedView, Split, computing_in
from ecoflap.core.seeding import seed_for, seeded


class ModelView(RefinedView):
    """The whole pruned model, held in float32 for as long as :meth:`opened` lasts.

    There is no second, dense model. The dense model's logits are computed from what its last block returned, which was
    recorded before that block was pruned, by the modules that follow the blocks: these are the same in both.

    :param dense: A replay in which every block with layers was recorded while it was dense. The processes that share
        its batches refine the model together.
    :param dense_weights: By the layer's name, what its matrix was before anything was pruned, in the model's type;
        empty where no refiner has ``dense_weights``.
    :param keep_in: A folder on whose disk lies all that training holds of the weights, for a model that is larger than
        memory, and what each block was given. One process refines it then.
    :ivar shared_by: The processes that have recorded its batches.
    """

    name = "the model"
    kept: KeptSteps | None = None
    """Where the next refiner's steps are kept; None for one that begins anew."""
    _of_try: KeptSteps | None = None

    def __init__(
        self,
        dense: Replay,
        layers: Sequence[Layer],
        masks: Mapping[str, Bool[Tensor, "out in"]],
        dense_weights: Mapping[str, Float[Tensor, "out in"]] = MappingProxyType({}),
        keep_in: Path | None = None,
    ) -> None:
        self.shared_by = dense.ranks
        ranks = dense.ranks if keep_in is None else ALONE
        super().__init__(layers, masks, Split.of(len(dense.batches)), dense.seed, ranks, keep_in)
        self.dense_weights = dense_weights
        self._dense = dense.with_all_batches()

    @property
    def blocks(self) -> list[tuple[int, Block]]:
        """Give the blocks of which layers are trained, each with its number among all."""
        trained, of = {id(layer) for layer in self.layers}, self._dense.anatomy.layers_of
        numbered = enumerate(self._dense.blocks)
        return [(at, block) for at, block in numbered if any(id(layer) in trained for layer in of[block.name])]

    @contextmanager
    def opened(self) -> Iterator["ModelView"]:
        """Hold the model in float32 where it is, and round its weights into place at the end.

        What was trained in files is afterwards what ``weights.take`` gives.
        """
        self._dense.widen(torch.float32)
        running = options_of(AdapterOptions, self._dense.adapter).running(self._dense.model)
        held = self.weights.held(self._dense.model, Placement(torch.float32, keep_in=self.keep_in))
        with held, without_fast_path(), running, self._sparing_memory():
            yield self

    def _sparing_memory(self) -> AbstractContextManager[None]:
        """Have no more than one block's activations in memory, where weights are not there either."""
        return nullcontext() if self.keep_in is None else recomputed_blocks(self._dense.blocks, self.keep_in)

    def failed_before(self) -> int:
        return self.kept.failed_before() if self.kept else 0

    def begin_try(self, failed: int) -> None:
        self._of_try = replace(self.kept, failed=failed) if self.kept else None

    def _steps_left(self, count: int, optimiser: torch.optim.Optimizer) -> Iterator[int]:
        # One loop of a try alone: in the file a second one would find the first one's steps for its own.
        kept, self._of_try = self._of_try, None
        left = kept.steps(count, self.parameters, optimiser) if kept else super()._steps_left(count, optimiser)
        with nullcontext() if self.keep_in is None else state_on_disk(optimiser, self.keep_in):
            yield from left

    def loss(self, number: int) -> Float[Tensor, ""]:
        """Compute the adapter's loss of a batch; differentiable where it is trained on."""
        adapter, device = self._dense.adapter, self.parameters[0].device.type
        computing = computing_in(self._dense.dtype or self.dtype, device)
        with seeded(seed_for(self._dense.seed, number)), computing, self.following(number):
            return loss_of(adapter, self._dense.model, self._dense.batches[number])

    @contextmanager
    def objective(self, number: int) -> Iterator[Float[Tensor, ""]]:
        """Give KL(dense ‖ pruned) of a batch in nats, a mean over the positions that its loss is about."""
        with self.held_against_dense(number, kl_of_rows) as divergence:
            yield divergence

    @contextmanager
    def held_against_dense(self, number: int, divergence: Divergence) -> Iterator[Float[Tensor, ""]]:
        """Give the mean over a batch's positions of how far what the pruned model says is from what the dense one does.

        :param divergence: Of the dense model's logits and the pruned one's, ``[rows, classes]`` each; a number a row,
            differentiable.
        """
        logits = DenseLogits()
        with logits.recorded():
            self._dense.loss(self._dense.finished, [number])
        _refuse_none(logits, self._dense.adapter)
        # A loss may make its logits anew in the backward, which therefore has to happen in here too.
        with logits.compared(divergence):
            yield self.loss(number)


def check_logits(replay: Replay) -> None:
    """Refuse a model whose loss is no cross entropy on its first batch, before hours are spent on pruning it.

    :param replay: In which no block is recorded yet.
    """
    logits = DenseLogits()
    with logits.recorded():
        replay.loss(0, replay.own[:1])
    _refuse_none(logits, replay.adapter)


def _refuse_none(logits: DenseLogits, adapter: Adapter) -> None:
    """Refuse a batch on which there were no logits: a loss would be trained on in the place of a divergence."""
    if logits.is_empty:
        raise ModelError(
            f"the loss of {type(adapter).__name__} is no cross entropy of logits here, so the pruned model cannot be "
            f"held against the dense one by what both say. Refine its blocks, by refine: [reconstruct]; a vision model "
            f"has logits where it has a classifier and the calibration data are labelled"
        )
