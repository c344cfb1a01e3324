"""One forward of a model in which earlier blocks answer from a record and the forward ends where it may."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import Placement
from ecoflap.core.model.anatomy import Block


@contextmanager
def replaced_forwards(
    blocks: Sequence[Block], forward_of: Callable[[int, Block], Callable[..., Any]]
) -> Iterator[None]:
    """Give each block another ``forward`` for a while, made by ``forward_of(index, block)``."""
    # It goes into the instance's __dict__, where another library's wrapper may already be.
    spaces = [block.module.__dict__ for block in blocks]
    before = [space.get("forward") for space in spaces]
    for index, (space, block) in enumerate(zip(spaces, blocks, strict=True)):
        space["forward"] = forward_of(index, block)
    try:
        yield
    finally:
        for space, forward in zip(spaces, before, strict=True):
            del space["forward"]
            if forward is not None:
                space["forward"] = forward


@contextmanager
def blocks_on(device: torch.device, blocks: Sequence[Block]) -> Iterator[None]:
    """Run each block on a device, brought there for as long as it runs, whoever calls the model's forward."""
    placement = Placement(device=device)

    def forward_of(_: int, block: Block) -> Callable[..., Any]:
        original = block.module.forward
        return lambda *args, **kwargs: placement.run(block.module, original, args, kwargs)

    with replaced_forwards(blocks, forward_of):
        yield


class _Finished(BaseException):
    """Ends a forward. Not an Exception: a model's own ``except Exception`` must not catch it."""


class Record:
    """For one batch: what each tower's last finished block returned, call by call."""

    def __init__(self) -> None:
        self._outputs: dict[str, list[Any]] = {}
        self._versions: dict[str, list[int]] = {}

    def finish(self, tower: str, outputs: list[Any]) -> None:
        self._outputs[tower] = outputs
        self._versions[tower] = [tensor._version for tensor in _tensors(outputs)]

    def output(self, block: Block, call: int) -> Any:
        return self._outputs[block.tower][call]

    def check(self) -> None:
        """A model that writes into a recorded tensor would silently spoil every later replay."""
        for tower, outputs in self._outputs.items():
            if self._versions[tower] != [tensor._version for tensor in _tensors(outputs)]:
                raise ModelError(f"the model writes in place into what the blocks of its {tower} tower return")


class Walk:
    """Blocks before ``first`` are stubs; the forward stops with the last call of block ``last``, or runs to its end.

    :param placement: How real blocks are held while they run.
    :param on_call: Told the number of each call of block ``last`` before it runs.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        record: Record,
        first: int,
        last: int | None,
        placement: Placement,
        on_call: Callable[[int], None] = lambda call: None,
    ) -> None:
        self._blocks, self._record, self._first, self._last = blocks, record, first, last
        self._placement = placement
        self._on_call = on_call
        self._calls = [0] * len(blocks)
        self._outputs: list[Any] = []

    def take(self, forward: Callable[[], Any]) -> Any:
        """What ``forward`` returns, or with ``last``, the outputs of that block's calls."""
        with replaced_forwards(self._blocks, self._forward_of):
            try:
                result = forward()
            except _Finished:
                result = self._outputs
            else:
                self._check_calls()
                if self._last is not None:  # a block called any number of times, after which nothing is to come
                    result = []
        self._record.check()
        return result

    def _forward_of(self, index: int, block: Block) -> Callable[..., Any]:
        return self._stub(index) if index < self._first else self._real(index, block)

    def _stub(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._record.output(self._blocks[index], self._enter(index))

        return forward

    def _real(self, index: int, block: Block) -> Callable[..., Any]:
        original = block.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self._enter(index)
            if index == self._last:
                self._on_call(call)
            output = self._placement.run(block.module, original, args, kwargs)
            if index == self._last and block.calls is not None:
                self._outputs.append(output)
                if len(self._outputs) == block.calls:
                    raise _Finished
            return output

        return forward

    def _enter(self, index: int) -> int:
        """Count a call; refuse one too many, or one before the blocks it follows have run."""
        block, call = self._blocks[index], self._calls[index]
        if call == block.calls:
            raise ModelError(
                f"{block.name} runs more than the {block.calls} times its adapter declares for one forward"
            )
        if index:
            previous = self._blocks[index - 1]
            if self._calls[index - 1] < (call + 1 if previous.tower == block.tower else 1):
                raise ModelError(
                    f"{block.name} runs before {previous.name}; its adapter must list blocks in the order they run"
                )
        self._calls[index] += 1
        return call

    def _check_calls(self) -> None:
        for block, calls in zip(self._blocks, self._calls, strict=True):
            if calls != block.calls and (calls == 0 or block.calls is not None):
                declared = block.calls or "some"
                raise ModelError(f"{block.name} ran {calls} times in one forward; its adapter declares {declared}")


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
