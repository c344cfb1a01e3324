"""One forward of a model in which earlier blocks answer from a record and the forward ends where it may."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ecoflap.core.errors import ModelError, WayOut
from ecoflap.core.forward.placement import Placement, replaced_forwards
from ecoflap.core.forward.records import Record, mappings_in, newly_shared
from ecoflap.core.model.anatomy import Block


class Finished(WayOut):
    """Ends a forward."""


@dataclass(frozen=True)
class BlockCall:
    """One call of a block in one forward: what it was given and what it returned.

    :param number: Which of the block's calls in this forward, from 0.
    :param output: None where nobody asked for it.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class BlockWatch:
    """Stands around each call of the block that a walk ends with; by itself it does nothing."""

    def before(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See what a call is given, where the rest of the model is, before any weight is brought for it."""

    def around(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """Run the block once by calling ``run``, and return what the model is to see as its output.

        The block's weights are held where and as precisely as the walk wants them while this runs, and what it is given
        is there too.
        """
        return run()

    def after(self, call: BlockCall) -> None:
        """See a call when it is over, with what it was given and returned where the rest of the model is."""


class GivenSeen(BlockWatch):
    """Keeps what a block is given in its first call, and ends the forward before it runs."""

    def __init__(self) -> None:
        self.seen: list[BlockCall] = []

    def before(self, number: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.seen.append(BlockCall(number, args, kwargs, None))
        raise Finished


class CallsSeen(BlockWatch):
    """Keeps what a block is given and what it returns, each where the model has it."""

    def __init__(self) -> None:
        self.seen: list[BlockCall] = []

    def after(self, call: BlockCall) -> None:
        self.seen.append(call)


class Walk:
    """One forward in which blocks before ``first`` are stubs, and which ends with the last call of block ``last``.

    It ends behind the forward hooks of that block, so that these see its output too and may change it. With ``last``
    None it runs to the end of the model's own forward.

    :param placement: How real blocks are held while they run.
    :param watch: Stands around each call of block ``last``.
    :param home: Where the weights of block ``last`` were, where they are held already; None where a call brings them.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        record: Record,
        first: int,
        last: int | None,
        placement: Placement,
        watch: BlockWatch,
        home: torch.device | None = None,
    ) -> None:
        self._blocks, self._record, self._first, self._last = blocks, record, first, last
        self._lent = record.lent()
        self._placement, self._watch, self._home = placement, watch, home
        self._calls = [0] * len(blocks)
        self._outputs: list[Any] = []

    def take(self, forward: Callable[[], Any]) -> Any:
        """Run ``forward``, and return what it returns, or with ``last``, the outputs of that block's calls."""
        with replaced_forwards(self._blocks, self._forward_of), self._ending():
            try:
                result = forward()
            except Finished:
                result = self._outputs
            else:
                self._check_calls()
                if self._last is not None:
                    # Nothing is recorded of a block that is called any number of times: nothing comes after it.
                    result = [] if self._blocks[self._last].calls is None else self._outputs
        self._record.check()
        self._lent.check()
        return result

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the forward behind the last hook of block ``last``, which was registered after all hooks of others."""
        if self._last is None or self._blocks[self._last].calls is None:
            yield
            return
        handle = self._blocks[self._last].module.register_forward_hook(self._end)
        try:
            yield
        finally:
            handle.remove()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        assert self._last is not None
        self._outputs[-1] = output  # another hook may have changed it
        if len(self._outputs) == self._blocks[self._last].calls:
            raise Finished

    def _forward_of(self, index: int, block: Block) -> Callable[..., Any]:
        return self._stub(index) if index < self._first else self._real(index, block)

    def _stub(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            block, call = self._blocks[index], self._enter(index)
            self._lent.share_again(block, call, args, kwargs)
            return self._lent.output(block, call)

        return forward

    def _real(self, index: int, block: Block) -> Callable[..., Any]:
        original = block.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            number = self._enter(index)
            if index != self._last:
                return self._placement.run(block.module, original, args, kwargs)
            self._watch.before(number, args, kwargs)

            def watched(*args: Any, **kwargs: Any) -> Any:
                return self._watch.around(number, args, kwargs, lambda: original(*args, **kwargs))

            before = {argument: dict(mapping) for argument, mapping in mappings_in(args, kwargs)}
            if self._home is not None:
                output = self._placement.call(self._home, watched, args, kwargs)
            else:
                output = self._placement.run(block.module, watched, args, kwargs)
            self._record.keep(block, number, [*newly_shared(before, args, kwargs)])
            self._watch.after(BlockCall(number, args, kwargs, output))
            self._outputs.append(output)
            return output

        return forward

    def _enter(self, index: int) -> int:
        """Count a call, and refuse one too many, or one before the blocks it follows have run."""
        block, call = self._blocks[index], self._calls[index]
        if call == block.calls:
            raise ModelError(
                f"{block.name} runs more than the {block.calls} times its adapter declares for one forward"
            )
        if index:
            previous = self._blocks[index - 1]
            if self._calls[index - 1] < (call + 1 if previous.tower == block.tower else 1):
                raise ModelError(
                    f"{block.name} runs before {previous.name}; its adapter must list blocks in the order they run, "
                    f"and none but those that each forward calls"
                )
        self._calls[index] += 1
        return call

    def _check_calls(self) -> None:
        for block, calls in zip(self._blocks, self._calls, strict=True):
            if calls != block.calls and (calls == 0 or block.calls is not None):
                declared = block.calls or "some"
                raise ModelError(f"{block.name} ran {calls} times in one forward; its adapter declares {declared}")
