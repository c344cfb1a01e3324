"""A pruned module as a refiner sees it: run on what it was called with, and held against what the dense one gave."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ecoflap.core.contracts.records import Target
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.block_gradient import by_sample
from ecoflap.core.forward.nested import map_tensors, tensors_in
from ecoflap.core.forward.placement import device_of
from ecoflap.core.forward.replay import Replay
from ecoflap.core.forward.walk import BlockCall
from ecoflap.core.model.anatomy import Block, Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.subblocks import Hidden, hidden_of
from ecoflap.core.refining.views import RefinedView, Split, computing_in
from ecoflap.core.seeding import seed_for, seeded

_LEAST = 1e-4
"""Of the median squared length of a batch's tokens, the least that a token's error is held against."""


def _least_length(lengths: Float[Tensor, " tokens"]) -> float:
    """Give the squared length that shorter tokens count as: a share of no length, or nearly none, has no bounds.

    By the median, since a mean would be the longest token's own; of those that have a length, since a block that
    leaves most tokens at 0 has a scale all the same. Where it leaves all of them there an error counts as it is.
    """
    positive = lengths[lengths > 0]
    return (float(positive.median()) * _LEAST if positive.numel() else 0.0) or 1.0


class HiddenView(RefinedView):
    """A pruned block or sub-block, which gives hidden states.

    :param replay: Of all batches, for this process alone.
    :param targets: What the dense one returned, by batch and call by call, for each target that is looked at.
    :param target: Which of them it is held against.
    :param ranks: The processes that refine it together.
    """

    _calls: Sequence[Sequence[BlockCall]] = ()
    """By batch, the calls with what was given; each has the number of the block's call that it is, or is inside of."""

    def __init__(
        self,
        replay: Replay,
        block: Block,
        layers: Sequence[Layer],
        masks: Mapping[str, Bool[Tensor, "out in"]],
        targets: Mapping[Target, Sequence[Hidden]],
        target: Target,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(layers, masks, Split.of(len(replay.batches)), replay.seed, ranks)
        self.block, self.name = block, block.name
        self._replay, self._targets, self.target = replay, targets, target

    def inputs(self, number: int) -> Hidden:
        """Give copies of the hidden states of a batch that it is given, as what is pruned before it leaves them."""
        return self._copied(next(tensors_in([*call.args, *call.kwargs.values()])) for call in self._calls[number])

    def outputs(self, number: int) -> Hidden:
        """Run it on a batch as what is pruned before it leaves it, in float32; differentiable if it is to train on."""
        with self._running(number), self.following(number):
            return [self._output(*self._given(call)) for call in self._calls[number]]

    def targets(self, number: int, of: Target | None = None) -> Hidden:
        """Give copies of what the dense one returned on a batch, in float32.

        :param of: On which inputs: those of the dense model or its own; by default those of :attr:`target`.
        :raises ModelError: Where that was not recorded, because the refiner does not say that it looks at it.
        """
        return self._copied(self._recorded(number, of or self.target))

    def _copied(self, recorded: Iterable[Tensor]) -> Hidden:
        """Copy what is recorded to where the module is: what a refiner writes into is not what it is judged by."""
        device = device_of(self.block.module)
        return [hidden.to(device, torch.float32, copy=True) for hidden in recorded]

    def _recorded(self, number: int, of: Target) -> Hidden:
        if of not in self._targets:
            raise ModelError(
                f"{self.name}: no targets called {of!r} were recorded, but {' and '.join(sorted(self._targets))}. A "
                f"refiner that looks at those called dense and at those called own says both_targets = True"
            )
        return self._targets[of][number]

    @contextmanager
    def objective(self, number: int) -> Iterator[Float[Tensor, ""]]:
        """Give the mean of ‖f(x) − t‖² / max(‖t‖², c) over the real tokens x of a batch.

        c is a small share of the median of those ‖t‖² that are not 0.
        What reads a hidden state normalises it first, so that an error matters as a share of its length. Of a language
        model's tokens the first has a hundred times the length of others, and their errors would be lost in its square.
        """
        yield self.error_of(number, self._calls[number], self.outputs(number))

    def error_of(self, number: int, calls: Sequence[BlockCall], outputs: Hidden) -> Float[Tensor, ""]:
        """Give the objective of a batch on hidden states that it returned in these calls."""
        device = device_of(self.block.module)
        targets = (target.to(device, torch.float32) for target in self._recorded(number, self.target))
        given = zip(calls, outputs, targets, strict=True)
        measured = [self._errors_and_lengths(number, *call) for call in given]
        errors, lengths = (torch.cat(each) for each in zip(*measured, strict=True))
        if not lengths.numel():
            return errors.sum()
        shares = errors / lengths.clamp_min(_least_length(lengths))
        return shares.sum() / len(shares)

    def _errors_and_lengths(
        self, number: int, call: BlockCall, output: Float[Tensor, "..."], target: Float[Tensor, "..."]
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Compute the squared error of each real token, and the squared length of what the dense one gave there."""
        both = (self._real(number, call, one).square().sum(-1).flatten() for one in (output - target, target))
        return next(both), next(both)

    def _real(self, number: int, call: BlockCall, hidden: Tensor) -> Tensor:
        if self.layers[0].layout == "selected":
            return hidden
        real = self._replay.tokens(number, self.block.tower, call.number) > 0
        return by_sample(self.block, self.layers, hidden, real)[real.to(hidden.device)]

    @contextmanager
    def _running(self, number: int) -> Iterator[None]:
        """Give a context to run a batch in: the same draws each time, products as precise as the replay's."""
        device = device_of(self.block.module).type
        with seeded(seed_for(self._replay.seed, number)), computing_in(self._replay.dtype or self.dtype, device):
            yield

    def _given(self, call: BlockCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give a call's arguments where the module is, in float32."""
        device = device_of(self.block.module)

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32 if tensor.is_floating_point() else None)

        return map_tensors(call.args, there), map_tensors(dict(call.kwargs), there)

    def _output(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Float[Tensor, "..."]:
        return hidden_of(self.name, self.block.module(*args, **kwargs))
