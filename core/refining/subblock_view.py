"""One sub-block of a pruned block as a refiner sees it: its inputs as what runs before it leaves them now."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor

from ecoflap.core.contracts.records import Target
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import Placement
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.walk import BlockCall
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.hidden_view import HiddenView
from ecoflap.core.refining.subblocks import Hidden, SubBlock


class SubBlockView(HiddenView):
    """One sub-block, for as long as :meth:`opened` lasts, and its block's view with it.

    :param calls_in: Runs the block on a batch, and gives the calls of this sub-block with what it is given now.
    """

    def __init__(
        self,
        replay: Replay,
        subblock: SubBlock,
        masks: Mapping[str, Bool[Tensor, "out in"]],
        targets: Mapping[Target, Sequence[Hidden]],
        target: Target,
        calls_in: Callable[[int], Sequence[BlockCall]],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(replay, subblock.block, subblock.layers, masks, targets, target, ranks)
        self._calls_in = calls_in

    @contextmanager
    def opened(self) -> Iterator["SubBlockView"]:
        """Keep what the sub-block is given of each batch as its block is now, until the end."""
        self._calls = [self._checked(number, self._calls_in(number)) for number in range(len(self._replay.batches))]
        try:
            with self.weights.held(self.block.module, Placement(torch.float32)):
                yield self
        finally:
            self._calls = ()

    def _checked(self, number: int, calls: Sequence[BlockCall]) -> Sequence[BlockCall]:
        """Refuse a model in which pruning changes how often the sub-block runs."""
        before = len(self._targets[self.target][number])
        if len(calls) != before:
            raise ModelError(
                f"{self.name}: on calibration batch {number} it runs {len(calls)} times in the pruned block, and in "
                f"the dense one it ran {before} times, so that one cannot be held against the other. Refine whole "
                f"blocks: each: block"
            )
        return calls

    def is_of_tokens(self) -> bool:
        """Say whether what it returned is of its tower's tokens in every batch, so that those that are real are known.

        It is not where a block gives it windows of an image, or a part of a sequence.
        """
        for number, hidden in enumerate(self._targets[self.target]):
            if not all(any(self._fits(number, call, one) for call in range(self.block.calls or 1)) for one in hidden):
                return False
        return True

    def _fits(self, number: int, call: int, hidden: Tensor) -> bool:
        try:
            self._real(number, BlockCall(call, (), {}, None), hidden)
        except ModelError:
            return False
        return True
