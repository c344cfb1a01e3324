"""Run a model's own forward from any block on, with everything before it answered from a record.

Hand-carried arguments are what breaks pruning code with each release of the model library. Here the model's own forward
does the walking: each earlier block is replaced by a stub that returns what was recorded, so only what is asked for
costs anything, whatever the blocks' signatures are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Float64, Int8
from torch import Tensor, nn

from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import Adapter, LossStatistic
from ecoflap.core.contracts.records import Batch, LayerPlace, Statistics, TokenChoice
from ecoflap.core.errors import ModelError, NotFiniteError
from ecoflap.core.forward.block_gradient import turned
from ecoflap.core.forward.capture import watching, without_fast_path
from ecoflap.core.forward.few_tokens import few_among
from ecoflap.core.forward.gradients import kept_gradients, saved_bytes, stream_gradients
from ecoflap.core.forward.noise import seed_for, seeded
from ecoflap.core.forward.observation import Observation, Observed
from ecoflap.core.forward.placement import HeldBlocks, Placement, added, numbers_in, outside_blocks, tensors_of
from ecoflap.core.forward.statistics import TokenWeights
from ecoflap.core.forward.walk import BlockCall, BlockWatch, CallsSeen, Record, Records, Walk, kept_in
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.ranks.shares import spans_dealt, spans_of

Value = TypeVar("Value")


class Replay:
    """A model, its blocks in the order they run, and for each batch what each tower's last finished block returned.

    ``run(i)``, ``calls(i)``, ``loss(i)`` and ``advance(i)`` need the blocks before ``i`` recorded, by ``advance(0)``
    and so on. As a context manager it also keeps what is not in any block in ``dtype``, which saves converting it at
    each forward.

    **What may be hooked.** Module hooks of PyTorch fire as in the model's own forward, on block ``i`` and on all that
    is inside it: forward pre-hooks before it runs, forward hooks with its output, which they may change, before the
    walk ends. Blocks before ``i`` are stubs: their own hooks fire, with recorded outputs; nothing inside them runs. Of
    blocks after ``i`` none runs in ``run``, ``calls`` and ``advance``, and all do in ``loss``. A matrix that a model
    applies without calling its module, such as a packed ``in_proj_weight``, fires no hook; ``run`` sees its inputs all
    the same.

    :param seed: Every forward runs in a forked global generator seeded by this and the batch's number: two losses of
        one batch are the same function of the weights.
    :param dtype: Blocks and everything else are held in at least this precision while they run; their weights come back
        bit for bit. None runs the model as it is.
    :param device: Where blocks run, brought there one at a time, while the rest of the model, the batches and what is
        recorded stay where they are. None runs blocks where they are.
    :param ranks: The processes that share the batches. Each runs those of its numbers in ``own`` and records these;
        ``loss``, ``run`` and ``each`` give what all batches come to, the same in every process and whatever their
        number, and all processes have to call them in the same order.
    :param keep_in: A folder on whose disk the record is kept; None keeps it in memory.
    :param spare: Bytes of memory that may be spent on being quicker, which changes no bit: as a context manager on all
        blocks in ``dtype``, each until it is recorded, and by ``gradients`` on activations, each where they fit.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        batches: Sequence[Batch],
        *,
        anatomy: Anatomy | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        ranks: Ranks = ALONE,
        keep_in: Path | None = None,
        spare: int = 0,
    ) -> None:
        self.model, self.adapter, self.batches = model, adapter, batches
        self.anatomy = anatomy or Anatomy.of(adapter.towers(model), adapter.layers)
        self.blocks: tuple[Block, ...] = self.anatomy.blocks
        self.seed, self.dtype = seed, dtype
        self.placement = Placement(dtype, None if device is None else torch.device(device))
        self.ranks = ranks
        self._spans = spans_dealt(spans_of(len(batches), ranks.size), ranks.size)[ranks.rank]
        self.own: Sequence[int] = [number for span in self._spans for number in span]
        self._records = Records((number, Record(keep_in)) for number in self.own)
        self._keep_in = keep_in
        self.finished = 0  # blocks that have been recorded
        self.few: dict[str, str] = {}  # what few_tokens says, by the layers whose Gram matrices run() has given
        self._moved: list[str] = []
        self._of_loss: dict[str, Statistics] = {}
        self._entered = ExitStack()
        self._spare, self._held = spare, HeldBlocks(self.placement)

    def __enter__(self) -> "Replay":
        wide = self.placement.widened_bytes(tensors_of(self.model))
        at_once = wide <= self._spare and self.placement.device is None
        with ExitStack() as entered:  # and left, where memory is not enough
            entered.callback(self._held.let_go, self.blocks)
            entered.enter_context(self.placement.in_place().held(self._tensors_outside))
            self._held.hold(self.blocks if at_once else ())
            self._entered = entered.pop_all()
        self._spare -= wide if at_once else 0
        return self

    def __exit__(self, *raised: object) -> None:
        self._entered.close()

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
        self.few |= few_among(seen)
        return seen

    def observed(
        self,
        i: int,
        needs: Sequence[type[Any]] = (),
        layers: Sequence[Layer] | None = None,
        tokens: TokenChoice = "real",
    ) -> Observed:
        """Run block ``i`` as :meth:`run` does, and give each layer's statistics to one process, its owner."""
        asked = self.anatomy.layers_of[self.blocks[i].name] if layers is None else layers
        of_loss = [need for need in needs if issubclass(need, LossStatistic)]
        if any(need not in self._of_loss.get(layer.name, {}) for layer in asked for need in of_loss):
            self.keep_loss_gradients([layer for _, layer in self.anatomy.layers()], of_loss)
        others = [need for need in needs if need not in of_loss]
        if of_loss and not others:
            seen = Observed.of({layer.name: self._of_loss[layer.name] for layer in asked}, asked, self.ranks.size)
        else:
            seen = self._observed(i, others, asked, tokens)
        return seen.joined(needs, self._of_loss) if of_loss else seen

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
            self._of_loss |= kept_gradients(wide.gradients, layers, needs, folder or self._keep_in, len(self.batches))

    def _observed(self, i: int, needs: Sequence[type[Any]], layers: Sequence[Layer], tokens: TokenChoice) -> Observed:
        observation = Observation(self.blocks[i], layers, needs, self.placement.device)
        # It takes forwards of its own, so they come before the one in which the weights are asked for.
        drifts = self._drifts(i) if tokens == "drifting" else {}
        weights = TokenWeights(tokens, self.tokens, len(self.batches), drifts)
        with self._holding(i) as home:
            for span in self._spans:
                for number in span:
                    self._observe(i, number, observation, weights, home)
                observation.end_span(first=self.ranks.rank == 0)
        return observation.observed(self.ranks)

    def fed_alike(self, i: int, layers: Sequence[Layer]) -> Observed:
        """Find out which layers of block ``i`` are fed the same, on as few batches as tell it, and sum nothing."""
        observation = Observation(self.blocks[i], layers, ())
        weights = TokenWeights("real", self.tokens, len(self.batches), {})
        with self._holding(i) as home:
            for number in self.own:
                self._observe(i, number, observation, weights, home)
                if observation.knows_inputs:
                    break
        return observation.observed(self.ranks)

    def _observe(
        self, i: int, number: int, observation: Observation, weights: TokenWeights, home: torch.device | None
    ) -> None:
        observation.begin(partial(self._tokens, self.batches[number]), partial(weights.of, number))
        with watching(self.anatomy.layers_of[self.blocks[i].name], observation.see):
            self._forward(number, first=i, last=i, watch=observation, home=home)

    def _drifts(self, i: int) -> dict[str, list[list[Tensor]]]:
        """Say by its tower how far block ``i`` turns each position, batch by batch and call by call."""
        block, layers = self.blocks[i], self.anatomy.layers_of[self.blocks[i].name]
        if layers[0].layout == "selected":
            return {}
        found = [
            [turned(block, layers, call, self.tokens(number, block.tower, call.number) > 0) for call in calls]
            for number, calls in zip(self.own, self.calls(i), strict=True)
        ]
        return {block.tower: self.gathered(found)}

    def calls(self, i: int) -> Iterator[Sequence[BlockCall]]:
        """Run block ``i`` on one own batch after the other, and yield its calls with their inputs and outputs.

        Most blocks are called once a batch. The tensors are the model's own: copy what is kept, change nothing.
        """
        for number in self.own:
            yield self.calls_of(i, number)

    def calls_of(self, i: int, number: int) -> Sequence[BlockCall]:
        """Run block ``i`` on one batch, and give its calls with their inputs and outputs, as :meth:`calls` does."""
        listener = CallsSeen()
        self._forward(number, first=i, last=i, watch=listener)
        return listener.seen

    def each(self, compute: Callable[[int], Value]) -> list[Value]:
        """Compute something of each batch by its number, here of the own ones, and give that of all, in their order."""
        return self.gathered([compute(number) for number in self.own])

    def gathered(self, mine: Sequence[Value]) -> list[Value]:
        """Give what there is of each batch, in their order, from what each process has of its own."""
        return [value for some in self.ranks.gather(list(mine)) for value in some]

    def kept(self, values: Any) -> Any:
        """Put the tensors among nested values where the record is kept."""
        return kept_in(self._keep_in, values)

    def with_all_batches(self) -> "Replay":
        """Give a replay for this process alone, in which what others have recorded of their batches is recorded too."""
        whole = copy(self)
        whole.ranks, whole.own, whole._spans = ALONE, range(len(self.batches)), spans_of(len(self.batches), 1)
        whole._records = Records(enumerate(self.ranks.gather_each(self._records, len(self.batches), Record.settled)))
        return whole

    def recorded(self, number: int) -> Sequence[Any]:
        """Give what the block that was recorded last returned on a batch, call by call."""
        return self._records[number].outputs(self.blocks[self.finished - 1])

    def widen(self, dtype: torch.dtype) -> None:
        """Hold what is recorded in at least this precision, for a model that is from now on held in it."""

        def wider(tensor: Tensor) -> Tensor:
            narrower = tensor.is_floating_point() and tensor.element_size() < dtype.itemsize
            return tensor.to(dtype) if narrower else tensor

        for record in self._records.values():
            record.convert(wider)

    def tokens(self, number: int, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what each position of a batch is, as the adapter's ``tokens`` does."""
        return self._tokens(self.batches[number], tower, call)

    def advance(self, i: int) -> None:
        """Record block ``i`` as it is now, so that the blocks after it see its present output."""
        self._require(i)
        with self._holding(i) as home:
            for number, record in self._records.items():
                record.finish(self.blocks[i], self._forward(number, first=i, last=i, home=home))
        self._held.let_go([self.blocks[i]])
        self.finished = i + 1

    def loss(self, i: int = 0, batches: Sequence[int] | None = None) -> Float64[Tensor, " batches"]:
        """Compute the loss of each batch, with the blocks before ``i`` as recorded and the real rest of the model.

        :param batches: Numbers of own batches; None for all batches.
        """
        numbers = self.own if batches is None else batches
        losses = [self._forward(number, first=i, last=None).detach().to("cpu", torch.float64) for number in numbers]
        if batches is None:
            numbers, losses = range(len(self.batches)), self.gathered(losses)
        values = torch.stack(losses)
        for number, value in zip(numbers, values.tolist(), strict=True):
            if not isfinite(value):
                what = f" with {', '.join(self._moved)} perturbed" if self._moved else ""
                raise NotFiniteError(
                    f"the loss of calibration batch {number} is {value}{what}, from {self.blocks[i].name} on"
                )
        return values

    @contextmanager
    def perturbed(self, layer: Layer, delta: Float[Tensor, "out in"]) -> Iterator[None]:
        """Hold ``weight + delta`` in ``dtype``'s precision; afterwards the weight is the same tensor, bit for bit."""
        parameter, original = layer.parameter, layer.parameter.data
        wide = original.dtype if self.dtype is None else torch.promote_types(original.dtype, self.dtype)
        self._moved.append(layer.name)
        try:
            moved = added(layer, wide, delta.to(original.device, wide))
            del delta  # of a block moved at once these are as large as all its weights
            with moved:
                yield
        finally:
            parameter.data = original
            self._moved.remove(layer.name)

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

    def _tokens(self, batch: Batch, tower: str, call: int) -> Tensor:
        with blaming(self._adapter_name):
            return self.adapter.tokens(self.model, batch, tower, call)

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        with blaming(f"{self._adapter_name}, computing the loss,"):
            return self.adapter.loss(self.model, batch)

    def place(self, i: int, layer: Layer) -> LayerPlace:
        """Say which layer of block ``i`` it is, as a pruner is told."""
        block = self.blocks[i]
        tower = [other.name for other in self.blocks if other.tower == block.tower]
        inside = [other.name for other in self.anatomy.layers_of[block.name]]
        numbers = tower.index(block.name), inside.index(layer.name)
        return LayerPlace(layer.name, block.tower, block.name, *numbers, layer.transposed)

    @property
    def _adapter_name(self) -> str:
        return f"the adapter {type(self.adapter).__name__}"

    def _require(self, i: int) -> None:
        """Refuse a block whose predecessors are not recorded: only the last finished block's output is kept."""
        if i not in (0, self.finished):
            done = f"{self.finished} blocks have" if self.finished else "no block has"
            raise ModelError(
                f"{self.blocks[i].name} is block {i}, but {done} been recorded. Call advance() for each block before "
                f"it, beginning with advance(0)"
            )

    @contextmanager
    def _holding(self, i: int) -> Iterator[torch.device | None]:
        """Hold a block's weights over several forwards that end with it, and say where they were.

        A block that is called more than once is not held, and None is given: between two calls others run, and no more
        than one block is to be there.
        """
        if self.blocks[i].calls != 1:
            yield None
            return
        with self.placement.module_held(self.blocks[i].module) as home:
            yield home

    @torch.no_grad()
    def _forward(
        self,
        number: int,
        first: int,
        last: int | None,
        watch: BlockWatch | None = None,
        home: torch.device | None = None,
    ) -> Any:
        """Compute the loss of one batch, or with ``last``, the outputs of all calls of that block.

        :param home: Where the weights of block ``last`` were, where they are held already.
        """
        self._require(first)
        walk = Walk(self.blocks, self._records[number], first, last, self.placement, watch or BlockWatch(), home)
        with without_fast_path(), self._prepared(number) as batch:
            return walk.take(lambda: self._loss(batch))

    @contextmanager
    def _prepared(self, number: int) -> Iterator[Batch]:
        """Give one batch, with the global generators forked and seeded."""
        outside = self.placement.in_place().held(self._tensors_outside)
        with seeded(seed_for(self.seed, number)), outside:
            yield self.batches[number]

    @cached_property
    def _tensors_outside(self) -> list[Tensor]:
        return outside_blocks(self.model, self.anatomy)
