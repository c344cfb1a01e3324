"""What is learnt of a model by running it from any block on: statistics of its layers, losses and gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import GradientStatistic, LossStatistic
from ecoflap.core.contracts.records import Statistics, TokenChoice
from ecoflap.core.errors import ModelError, NotFiniteError
from ecoflap.core.forward.block_gradient import turned
from ecoflap.core.forward.capture import watching, without_fast_path
from ecoflap.core.forward.gradients import kept_gradients, saved_bytes, stream_gradients
from ecoflap.core.forward.nested import numbers_in, times_as_large
from ecoflap.core.forward.observation import Observation, Observed
from ecoflap.core.forward.paused import Begun, PausedForwards, ProductsSeen, may_pause
from ecoflap.core.forward.placement import added
from ecoflap.core.forward.recorded_model import RecordedModel
from ecoflap.core.model.anatomy import Layer
from ecoflap.core.statistics.few_tokens import few_among
from ecoflap.core.statistics.token_weights import TokenWeights


class Replay(RecordedModel):
    """Learns of a model, from any block on, what scorers, pruners and evaluators ask: statistics, losses and gradients.

    It is made as :class:`RecordedModel` says. ``run(i)``, ``calls(i)``, ``loss(i)`` and ``advance(i)`` need the blocks
    before ``i`` recorded, by ``advance(0)`` and so on.

    **What may be hooked.** Module hooks of PyTorch fire as in the model's own forward, on block ``i`` and on all that
    is inside it: forward pre-hooks before it runs, forward hooks with its output, which they may change, before the
    walk ends. Blocks before ``i`` are stubs: their own hooks fire, with recorded outputs; nothing inside them runs. Of
    blocks after ``i`` none runs in ``run``, ``calls`` and ``advance``, and all do in ``loss``. A matrix that a model
    applies without calling its module, such as a packed ``in_proj_weight``, fires no hook; ``run`` sees its inputs all
    the same.

    :ivar few_tokens_seen: What :func:`few_tokens` says of the layers whose Gram matrices ``run`` has given, by name.
    """

    def _begin(self) -> None:
        self.few_tokens_seen: dict[str, str] = {}
        self._loss_statistics: dict[str, Statistics] = {}  # that were taken of the loss' gradient, by layer
        self._perturbed: list[str] = []  # names of the layers that are now

    def run(
        self,
        i: int,
        needs: Sequence[type[Any]] = (),
        layers: Sequence[Layer] | None = None,
        tokens: TokenChoice = "real",
    ) -> Mapping[str, Statistics]:
        """Run block ``i`` on every batch and observe its layers.

        :param needs: Types of the statistics to take of each layer's inputs, or of its gradient in a backward through
            this block alone (:class:`RegionalGradient`). One of the whole loss' gradient (:class:`LossGradient`) is
            taken of all layers as the model is now, unless :meth:`keep_loss_gradients` has taken it before.
            Where none takes a gradient, a batch's forward but the first ends where the block's last input was seen.
        :param layers: Those of its layers to observe; None for all.
        :param tokens: Which tokens count in the statistics of inputs.
        :return: By layer name, its statistics by type: ``seen[name][Gram]``.
        """
        seen = self.observed(i, needs, layers, tokens).everywhere(self.ranks)
        self.few_tokens_seen |= few_among(seen)
        return seen

    def observed(
        self,
        i: int,
        needs: Sequence[type[Any]] = (),
        layers: Sequence[Layer] | None = None,
        tokens: TokenChoice = "real",
        paused: PausedForwards | None = None,
    ) -> Observed:
        """Run block ``i`` as :meth:`run` does, and give each layer's statistics to one process, its owner.

        :param paused: Forwards that wait for these layers, which share an input. As long as they are in step the block
            is not run anew.
        """
        asked = self.anatomy.layers_of[self.blocks[i].name] if layers is None else layers
        of_loss = [need for need in needs if issubclass(need, LossStatistic)]
        there = [self._loss_statistics.get(layer.name, Statistics()) for layer in asked]
        if missing := [need for need in of_loss if any(need not in seen for seen in there)]:
            self.keep_loss_gradients([layer for _, layer in self.anatomy.layers()], missing)
        others = [need for need in needs if need not in of_loss]
        if of_loss and not others:
            taken = {layer.name: self._loss_statistics[layer.name] for layer in asked}
            seen = Observed.of(taken, asked, self.ranks.size)
        else:
            seen = self._observed(i, others, asked, tokens, paused)
        return seen.joined(needs, self._loss_statistics) if of_loss else seen

    def keep_loss_gradients(
        self, layers: Sequence[Layer], needs: Sequence[type[Any]], folder: Path | None = None
    ) -> None:
        """Take statistics of the loss' gradient at some layers, in float32 and with the model as it is now.

        :meth:`run` gives them from then on, also after blocks were pruned. It takes one backward a batch.

        :param needs: Their types, such as :class:`LossGradient`.
        :param folder: Where their numbers, one for each weight, lie in a file meanwhile; None for where the record is.
        """
        wide = Replay(
            self.model,
            self.adapter,
            self.batches,
            anatomy=self.anatomy,
            seed=self.seed,
            dtype=torch.float32,
            device=self.placement.device,
        )
        with wide:
            folder = folder or self._keep_in
            found = kept_gradients(wide.gradients, layers, needs, folder, len(self.batches))
        for name, taken in found.items():  # others of a layer, which were taken before, stay
            self._loss_statistics[name] = Statistics(
                {**self._loss_statistics.get(name, {}), **taken}, is_fed=taken.is_fed
            )

    def _observed(
        self,
        i: int,
        needs: Sequence[type[Any]],
        layers: Sequence[Layer],
        tokens: TokenChoice,
        paused: PausedForwards | None,
    ) -> Observed:
        observation = Observation(self.blocks[i], layers, needs, self.placement.device)
        # It takes forwards of its own, so they come before the one in which the weights are asked for.
        drifts = self._drifts(i) if tokens == "drifting" else {}
        weights = TokenWeights(tokens, self.tokens, len(self.batches), drifts)
        if paused is not None and paused.come_to(layers):
            self._see_each(observation, weights, lambda number: observation.see_alike(*paused.inputs(number, layers)))
        else:
            with self._holding(i) as home:
                self._see_each(observation, weights, lambda number: self._see(i, number, observation, home))
        return observation.observed(self.ranks)

    def _see_each(self, observation: Observation, weights: TokenWeights, see: Callable[[int], None]) -> None:
        """Let an observation see each own batch, span by span."""
        for span in self._spans:
            for number in span:
                observation.begin(partial(self._tokens, self.batches[number]), partial(weights.of, number))
                see(number)
            observation.end_span(first=self.ranks.rank == 0)

    def _see(self, i: int, number: int, observation: Observation, home: torch.device | None) -> None:
        with watching(self.anatomy.layers_of[self.blocks[i].name], observation.see):
            self._forward(number, first=i, last=i, watch=observation, home=home)

    def fed_alike(self, i: int, layers: Sequence[Layer]) -> Observed:
        """Find out which layers of block ``i`` are fed the same, on as few batches as tell it, and sum nothing."""
        observation = Observation(self.blocks[i], layers, ())
        weights = TokenWeights("real", self.tokens, len(self.batches), {})
        products, may_wait = ProductsSeen(), self._may_wait(i, layers)
        inside = self.anatomy.layers_of[self.blocks[i].name]
        with self._holding(i) as home, products.looking(inside) if may_wait else nullcontext():
            for number in self.own:
                observation.begin(partial(self._tokens, self.batches[number]), partial(weights.of, number))
                self._see(i, number, observation, home)
                if observation.knows_inputs:
                    break
        can_wait = may_wait and observation.saw_each_once and products.are_linear_once(layers)
        return replace(observation.observed(self.ranks), held=products.most if can_wait else None)

    def _may_wait(self, i: int, layers: Sequence[Layer]) -> bool:
        """Say whether forwards of block ``i`` may wait for some of its layers, as far as that shows before it runs."""
        has_memory = self._spare > 0 and self._keep_in is None
        return has_memory and may_pause(self.blocks[i], layers, self.placement)

    def _drifts(self, i: int) -> dict[str, list[list[Tensor]]]:
        """Say by its tower how far block ``i`` turns each position, batch by batch and call by call."""
        block, layers = self.blocks[i], self.anatomy.layers_of[self.blocks[i].name]
        # A single matrix turns nothing: it gives another space.
        if self.anatomy.is_outside(block) or layers[0].layout == "selected":
            return {}
        found = [
            [turned(block, layers, call, self.tokens(number, block.tower, call.number) > 0) for call in calls]
            for number, calls in zip(self.own, self.calls(i), strict=True)
        ]
        return {block.tower: self.gathered(found)}

    def paused(
        self,
        i: int,
        needs: Sequence[type[Any]],
        layers: Sequence[Layer],
        alike: Observed,
        tokens: TokenChoice,
    ) -> PausedForwards:
        """Begin block ``i`` on each own batch, so that its forwards wait for these layers; on none where they cannot.

        :param needs: Types of the statistics that are to be taken of their inputs.
        :param alike: What :meth:`fed_alike` has found out of them.
        :param tokens: Which tokens are to count in the statistics of inputs.
        """
        block, begun = self.blocks[i], dict[int, Begun]()
        asks_no_more = tokens != "drifting" and not any(issubclass(need, GradientStatistic) for need in needs)
        if asks_no_more and alike.held is not None and self._has_room_for(alike.held):
            for number in self.own:
                begun[number] = Begun()
                self._forward(number, first=i, last=i, watch=begun[number])
        return PausedForwards(self.anatomy.layers_of[block.name], layers, begun, self._running)

    def _has_room_for(self, held: int) -> bool:
        """Say whether all own batches may hold at once what the first of them held.

        Scores of attention are as many as the square of a text's tokens.
        """
        sizes = [times_as_large(self.batches[number], self.batches[self.own[0]]) for number in self.own]
        return sum(held * max(size, size**2) for size in sizes) <= self._spare

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run a part of the model as its loss does."""
        running = options_of(AdapterOptions, self.adapter).running(self.model)
        with torch.no_grad(), without_fast_path(), running, blaming(f"{self._adapter_name}, computing the loss,"):
            yield

    def take_over(self, i: int, paused: PausedForwards) -> bool:
        """Record what paused forwards of block ``i`` give when they are over, and say whether they stayed in step."""
        is_over = paused.finish()
        if is_over:
            self._record(i, ((number, [output]) for number, output in paused.outputs()))
        return is_over

    def loss(self, i: int = 0, batches: Sequence[int] | None = None) -> Float64[Tensor, " batches"]:
        """Compute the loss of each batch, with the blocks before ``i`` as recorded and the real rest of the model.

        :param batches: Numbers of own batches; None for all batches.
        """
        if not self.batches:
            raise ModelError(
                "replay.loss was asked for, and there are no batches: this part says data = False. Leave that out, and "
                "the recipe's calibration data are given"
            )
        numbers = self.own if batches is None else batches
        losses = [self._forward(number, first=i, last=None).detach().to("cpu", torch.float64) for number in numbers]
        if batches is None:
            numbers, losses = range(len(self.batches)), self.gathered(losses)
        values = torch.stack(losses)
        for number, value in zip(numbers, values.tolist(), strict=True):
            if not isfinite(value):
                what = f" with {', '.join(self._perturbed)} perturbed" if self._perturbed else ""
                raise NotFiniteError(
                    f"the loss of calibration batch {number} is {value}{what}, from {self.blocks[i].name} on"
                )
        return values

    @contextmanager
    def perturbed(self, layer: Layer, delta: Float[Tensor, "out in"]) -> Iterator[None]:
        """Hold ``weight + delta`` in ``dtype``'s precision; afterwards the weight is the same tensor, bit for bit."""
        if tuple(delta.shape) != layer.shape:  # torch would add one row to all
            raise ModelError(
                f"replay.perturbed was given a tensor of {tuple(delta.shape)} for {layer.name}, which is {layer.shape}"
            )
        parameter, original = layer.parameter, layer.parameter.data
        wide = original.dtype if self.dtype is None else torch.promote_types(original.dtype, self.dtype)
        self._perturbed.append(layer.name)
        try:
            moved = added(layer, wide, delta.to(original.device, wide))
            del delta  # of a block moved at once these are as large as all its weights
            with moved:
                yield
        finally:
            parameter.data = original
            self._perturbed.remove(layer.name)

    def gradients(self, visit: Callable[[Layer, Tensor], None]) -> None:
        """Run one backward an own batch, and call ``visit(layer, gradient)`` as each gradient is ready.

        One layer's gradient is held at a time. Blocks are checkpointed, so that one block's activations are, unless all
        of them fit into the memory that may be spent.
        """
        with without_fast_path():
            keep = self._has_room_for_activations()
            for number in self.own:
                with self._prepared(number) as batch:
                    stream_gradients(self.model, self.adapter, batch, self.anatomy, self.placement, visit, keep=keep)

    def _has_room_for_activations(self) -> bool:
        """Count them in a forward of the largest own batch, which pays from two batches on."""
        is_once = all(block.calls == 1 for block in self.blocks)  # sums over calls are in one order then
        if len(self.own) < 2 or not is_once or not self._held.has(self.blocks):
            return False
        largest = max(self.own, key=lambda number: numbers_in(self.batches[number]))
        with self._prepared(largest) as batch:
            return saved_bytes(self.model, self.adapter, batch, self.anatomy) <= self._spare
