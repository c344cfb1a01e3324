"""Run a model's own forward from any block on, with everything before it answered from a record.

Hand-carried arguments are what breaks pruning code with each release of the model library. Here the model's own forward
does the walking: each earlier block is replaced by a stub that returns what was recorded, so only what is asked for
costs anything, whatever the blocks' signatures are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ecoflap.core.contracts.adapter_answers import loss_of, tokens_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, LayerPlace
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.capture import without_fast_path
from ecoflap.core.forward.placement import HeldBlocks, Placement, outside_blocks, tensors_of
from ecoflap.core.forward.records import Record, Records, kept_in
from ecoflap.core.forward.walk import BlockCall, BlockWatch, CallsSeen, GivenSeen, Walk
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.ranks.shares import spans_dealt, spans_of
from ecoflap.core.seeding import seed_for, seeded

Value = TypeVar("Value")
Own = TypeVar("Own", bound="RecordedModel")


class RecordedModel:
    """A model, its blocks in the order they run, and for each batch what each tower's last finished block returned.

    ``calls(i)`` and ``advance(i)`` need the blocks before ``i`` recorded, by ``advance(0)`` and so on. As a context
    manager it also keeps what is not in any block in ``dtype``, which saves converting it at each forward.

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
        blocks in ``dtype``, each until it is recorded, by ``gradients`` on activations, and by ``paused`` on forwards
        that wait, each where they fit.
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
        self._entered = ExitStack()
        self._spare, self._held = spare, HeldBlocks(self.placement)
        self._begin()

    def _begin(self) -> None:
        """Make what a subclass keeps beside the record, empty yet."""

    def __enter__(self: Own) -> Own:
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

    def advance(self, i: int) -> None:
        """Record block ``i`` as it is now, so that the blocks after it see its present output."""
        self._require(i)
        with self._holding(i) as home:
            self._record(i, ((number, self._forward(number, first=i, last=i, home=home)) for number in self.own))

    def _record(self, i: int, outputs: Iterable[tuple[int, list[Any]]]) -> None:
        """Record what block ``i`` gives on each own batch, by its number."""
        for number, one in outputs:
            self._records[number].check()
            self._records[number].finish(self.blocks[i], one)
        self._held.let_go([self.blocks[i]])
        self.finished = i + 1

    def calls(self, i: int) -> Iterator[Sequence[BlockCall]]:
        """Run block ``i`` on one own batch after the other, and yield its calls with their inputs and outputs.

        Most blocks are called once a batch. The tensors are the model's own: copy what is kept, change nothing.
        """
        for number in self.own:
            yield self.calls_of(i, number)

    def calls_of(self, i: int, number: int) -> Sequence[BlockCall]:
        """Run block ``i`` on one batch, and give its calls with their inputs and outputs, as :meth:`calls` does."""
        watch = CallsSeen()
        self._forward(number, first=i, last=i, watch=watch)
        return watch.seen

    def given_to(self, i: int, number: int) -> Sequence[BlockCall]:
        """Give the calls of block ``i`` on one batch with what it is given, and no outputs.

        It does not run for that, unless it is called more than once: a later call may be given what an earlier one
        made.
        """
        if self.blocks[i].calls != 1:
            return [replace(call, output=None) for call in self.calls_of(i, number)]
        watch = GivenSeen()
        self._forward(number, first=i, last=i, watch=watch)
        return watch.seen

    def recorded(self, number: int) -> Sequence[Any]:
        """Give what the block that was recorded last returned on a batch, call by call."""
        return self._records[number].outputs(self.blocks[self.finished - 1])

    def each(self, compute: Callable[[int], Value]) -> list[Value]:
        """Compute something of each batch by its number, here of the own ones, and give that of all, in their order."""
        return self.gathered([compute(number) for number in self.own])

    def gathered(self, mine: Sequence[Value]) -> list[Value]:
        """Give what there is of each batch, in their order, from what each process has of its own."""
        return [value for some in self.ranks.gather(list(mine)) for value in some]

    def kept(self, values: Any) -> Any:
        """Put the tensors among nested values where the record is kept."""
        return kept_in(self._keep_in, values)

    def with_all_batches(self: Own) -> Own:
        """Give the same for this process alone, in which what others have recorded of their batches is recorded too."""
        whole = copy(self)
        whole.ranks, whole.own, whole._spans = ALONE, range(len(self.batches)), spans_of(len(self.batches), 1)
        whole._records = Records(enumerate(self.ranks.gather_each(self._records, len(self.batches), Record.settled)))
        return whole

    def widen(self, dtype: torch.dtype) -> None:
        """Hold what is recorded in at least this precision, for a model that is from now on held in it."""

        def wider(tensor: Tensor) -> Tensor:
            narrower = tensor.is_floating_point() and tensor.element_size() < dtype.itemsize
            return tensor.to(dtype) if narrower else tensor

        for record in self._records.values():
            record.convert(wider)

    def tokens(self, number: int, tower: str, call: int = 0) -> Shaped[Tensor, "batch tokens"]:
        """Say what each position of a batch is, as the adapter's ``tokens`` does."""
        return self._tokens(self.batches[number], tower, call)

    def place(self, i: int, layer: Layer) -> LayerPlace:
        """Say which layer of block ``i`` it is, as a pruner is told."""
        block = self.blocks[i]
        tower = [other.name for other in self.blocks if other.tower == block.tower]
        inside = [other.name for other in self.anatomy.layers_of[block.name]]
        numbers = tower.index(block.name), inside.index(layer.name)
        return LayerPlace(layer.name, block.tower, block.name, *numbers, layer.transposed)

    def _require(self, i: int) -> None:
        """Refuse a block whose predecessors are not recorded: only the last finished block's output is kept."""
        if i not in (0, self.finished):
            done = f"{self.finished} blocks have" if self.finished else "no block has"
            raise ModelError(
                f"{self.blocks[i].name} is block {i}, but {done} been recorded. Call replay.advance(index) for "
                f"each block before it, from 0 on: at the end of a loop over blocks"
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

    def _tokens(self, batch: Batch, tower: str, call: int) -> Tensor:
        return tokens_of(self.adapter, self.model, batch, tower, call)

    def _loss(self, batch: Batch) -> Float[Tensor, ""]:
        return loss_of(self.adapter, self.model, batch)

    @property
    def _adapter_name(self) -> str:
        return f"the adapter {type(self.adapter).__name__}"

    @cached_property
    def _tensors_outside(self) -> list[Tensor]:
        return outside_blocks(self.model, self.anatomy)
