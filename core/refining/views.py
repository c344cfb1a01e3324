"""What a refiner is given: a pruned block or the pruned whole model, opened for its kept weights to be trained."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.refining.trained_weights import TrainedWeights
from ecoflap.core.seeding import seed_for, seed_generators

_HELD_OUT = 8
"""One batch in so many is held out: enough to tell a gain from an overfit, and few enough to be spared."""


class Split(NamedTuple):
    """Which calibration batches a refiner trains on, and which it is judged by. A single batch is both."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]

    @classmethod
    def of(cls, batches: int) -> "Split":
        """Hold out the last of every eight batches, or the last of fewer."""
        numbers = range(batches)
        held_out = tuple(numbers[_HELD_OUT - 1 :: _HELD_OUT] or numbers[-1:])
        return cls(tuple(number for number in numbers if number not in held_out) or held_out, held_out)


def computing_in(dtype: torch.dtype, device: str) -> AbstractContextManager[None]:
    """Let products be computed in bfloat16 where the model's are, while its weights are held in float32.

    On a CPU that has instructions for it this is twice as fast, and the model's own products are no more precise. In
    float16, whose gradients underflow, everything is computed in float32.

    :param dtype: In which the model's products are computed.
    """
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)


class RefinedView:
    """A part of the model whose kept weights may be trained while it is open.

    While it is open, weights are held in float32; a pruned weight has no gradient, and is zero again when it closes.

    :param layers: Those that were pruned.
    :param masks: By the layer's name, ``[out, in]``, True for what is kept; they stay. None are given to a process that
        waits for another one to refine.
    :param split: Numbers of the calibration batches to train on, and of those by which the outcome is judged, and which
        a refiner leaves alone.
    :param seed: The recipe's.
    :param ranks: The processes that have the same view, each with all batches, and come to the same weights.
    :param keep_in: A folder on whose disk lies what is trained, and all that is kept of it; None for memory.
    """

    name: str
    dtype: torch.dtype  # of the weights where the view is not open
    ranks: Ranks = ALONE
    seed: int = 0
    dense_weights: Mapping[str, Float[Tensor, "out in"]] = MappingProxyType({})
    """By the layer's name, what it was before anything was pruned; empty where no refiner has ``dense_weights``."""

    def __init__(
        self,
        layers: Sequence[Layer],
        masks: Mapping[str, Bool[Tensor, "out in"]],
        split: Split,
        seed: int,
        ranks: Ranks = ALONE,
        keep_in: Path | None = None,
    ) -> None:
        self.ranks, self.seed, self.keep_in = ranks, seed, keep_in
        self.layers, self.masks = tuple(layers), masks
        self.training, self.held_out = split
        self.weights = TrainedWeights([layer for layer in layers if layer.name in masks], masks, keep_in)
        self.dtype = layers[0].parameter.dtype

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Give the parameters to be trained, which layers are, or are parts of."""
        return self.weights.parameters

    @property
    def shown(self) -> dict[str, Tensor]:
        """Give the tensors that a refiner may look at and not write into, by what messages call them."""
        masks = {f"the mask of {name}": mask for name, mask in self.masks.items()}
        return masks | {f"the dense weights of {name}": weight for name, weight in self.dense_weights.items()}

    def steps(self, count: int, optimiser: torch.optim.Optimizer) -> Iterator[int]:
        """Yield the numbers of so many steps of training, without those that an earlier process has done.

        Of the whole model, a run that was cut off takes them up with the weights as they were, and what the optimiser
        knew of them; a block is done again from its first.

        :param optimiser: Of :attr:`parameters`, with nothing but tensors in its state, as Adam and SGD have. Its rates
            are the refiner's to set before each step. What it draws in a step depends on the step's number alone.
        """
        for step in self._steps_left(count, optimiser):
            seed_generators(seed_for(self.seed, "step", step))  # which whoever asks the refiner puts back
            yield step

    def _steps_left(self, count: int, optimiser: torch.optim.Optimizer) -> Iterable[int]:
        return range(count)

    def failed_before(self) -> int:
        """Tell how many tries of the refiner have failed in an earlier process: their steps were too large."""
        return 0

    def begin_try(self, failed: int) -> None:
        """Make ready for a refiner to train, once so many tries of larger steps have failed."""

    @contextmanager
    def following(self, number: int) -> Iterator[None]:
        """Have torch follow gradients through a batch as it does here, but through none that is held out.

        Such a batch may be looked at, as to stop early; nothing is trained on what it is judged by.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_left_alone(number)):
            yield

    def _is_left_alone(self, number: int) -> bool:
        return number in self.held_out and number not in self.training

    def objective(self, number: int) -> AbstractContextManager[Float[Tensor, ""]]:
        """Give how far a batch's outcome is from the dense model's, differentiable for as long as the context lasts.

        It is at least 0, and 0 where nothing was lost.
        """
        raise NotImplementedError

    def add_gradient(self, number: int, share: float = 1.0) -> float:
        """Add a batch's share of the objective to the gradients, and return the objective.

        :raises ModelError: For one that is held out.
        """
        if self._is_left_alone(number):
            raise ModelError(
                f"{self.name}: a refiner wants the gradients of batch {number}, by which it is judged, for that one is "
                f"held out. Train on the batches of view.training; view.measure(…) looks at any"
            )
        with self.objective(number) as error:
            (error * share).backward()
            return float(error.detach())

    def add_gradients(self, numbers: Sequence[int], share: float = 1.0) -> None:
        """Add some batches' shares of the objective to the gradients, each of them computed by one of the processes.

        They are added in the batches' order, so that the sums have the same bits as those of one process.
        """
        if self.ranks.size == 1:  # which need not hold a gradient of each batch at the same time
            for number in numbers:
                self.add_gradient(number, share)
            return
        before = self._gradients_taken()
        for found in [before, *self.ranks.deal(numbers, lambda number: self._gradients(number, share))]:
            for parameter, gradient in zip(self.parameters, found, strict=True):
                if parameter.grad is None:
                    parameter.grad = gradient
                elif gradient is not None:
                    parameter.grad += gradient

    def _gradients(self, number: int, share: float) -> list[Tensor | None]:
        """Give a batch's share of the objective's gradients, where there are none before and afterwards."""
        self.add_gradient(number, share)
        return self._gradients_taken()

    def _gradients_taken(self) -> list[Tensor | None]:
        """Give the gradients that are there, and leave none: each process then has what all of them add up."""
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found

    @torch.no_grad()
    def measure(self, numbers: Sequence[int]) -> float:
        """Compute the mean of the objective over batches."""
        return sum(self.ranks.deal(numbers, self._measured)) / len(numbers)

    def _measured(self, number: int) -> float:
        with self.objective(number) as error:
            return float(error.detach())
