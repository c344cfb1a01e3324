"""One forward of a model in which earlier blocks answer from a record and the forward ends where it may."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.disk.on_disk import OnDisk, lies_on_disk, on_disk
from ecoflap.core.errors import ModelError, WayOut
from ecoflap.core.forward.placement import Placement, map_tensors, replaced_forwards
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


@dataclass(frozen=True)
class _Shared:
    """Something that a block put into a mapping that it was given.

    :param argument: The mapping's name or place among the block's arguments.
    """

    argument: str | int
    key: Any
    value: Any


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


class Record:
    """What each tower's last finished block returned on one batch, call by call, and what each tapped one did.

    Some models hand all blocks one mapping, into which a block puts what a later one reads, such as keys and values
    that layers share. What a block put there is kept too, and put there again in its place.

    :param folder: On whose disk it is kept; None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._outputs: dict[str, list[Any]] = {}
        self._tapped: dict[str, list[Any]] = {}
        self._versions: dict[str, list[int]] = {}
        self._shared: dict[tuple[str, int], list[_Shared]] = {}

    def finish(self, block: Block, outputs: list[Any]) -> None:
        outputs = self._kept(outputs)
        self._outputs[block.tower] = outputs
        self._versions[block.tower] = _versions(_lying(outputs))
        if block.tapped:
            self._tapped[block.name] = outputs

    def outputs(self, block: Block) -> list[Any]:
        """Give what the last finished block of a tower returned, call by call, with its tensors where they are kept."""
        return list(_lying(self._outputs[block.tower]))

    def lent(self) -> "Lent":
        """Give what is recorded to one forward."""
        return Lent(self._outputs, self._tapped, self._shared)

    def convert(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put what ``change`` makes of each recorded tensor in its place, and keep it where that was."""

        def changed(kept: Tensor | OnDisk) -> Tensor | OnDisk:
            if isinstance(kept, Tensor):
                return change(kept)
            made = change(kept.tensor)
            return kept if made is kept.tensor else OnDisk(kept_in(self._folder, made), kept.device)

        self._change(changed)

    def settled(self) -> "Record":
        """Keep what another process has sent where it was kept there, and give this record."""

        def settle(sent: Tensor | OnDisk) -> Tensor | OnDisk:
            if isinstance(sent, Tensor):
                return sent
            # The GPU of that number is the other process' own: this one has another.
            return OnDisk(kept_in(self._folder, sent.tensor), torch.device(sent.device.type))

        self._change(settle)
        return self

    def _change(self, change: Callable[[Any], Any]) -> None:
        kinds = (Tensor, OnDisk)
        self._outputs = map_tensors(self._outputs, change, kinds)
        self._tapped = map_tensors(self._tapped, change, kinds)
        self._shared = {
            at: [replace(one, value=map_tensors(one.value, change, kinds)) for one in shared]
            for at, shared in self._shared.items()
        }
        self._versions = {tower: _versions(_lying(outputs)) for tower, outputs in self._outputs.items()}

    def check(self) -> None:
        """Refuse a model that has written into a recorded tensor, which would silently spoil every later replay."""
        for tower, outputs in self._outputs.items():
            _refuse_written(tower, self._versions[tower], _lying(outputs))

    def keep(self, block: Block, call: int, shared: list["_Shared"]) -> None:
        self._shared[block.name, call] = [replace(one, value=self._kept(one.value)) for one in shared]

    def _kept(self, values: Any) -> Any:
        if self._folder is None:
            return values
        return map_tensors(values, lambda tensor: OnDisk(kept_in(self._folder, tensor), tensor.device))


class Lent:
    """What is recorded of a batch, as one forward has it: each tensor on the device that it was on.

    What lies on a disk is brought there once, although each of the blocks before the last finished one returns it.
    """

    def __init__(
        self,
        outputs: Mapping[str, Sequence[Any]],
        tapped: Mapping[str, Sequence[Any]],
        shared: Mapping[tuple[str, int], Sequence[_Shared]],
    ) -> None:
        self._outputs, self._tapped, self._shared = outputs, tapped, shared
        self._lent: dict[tuple[str, int], tuple[str, Any, list[int]]] = {}

    def output(self, block: Block, call: int) -> Any:
        """Give what a block returns in a call: its own output, or that of its tower's last finished one."""
        name, recorded = block.tower, self._outputs[block.tower]
        if block.name in self._tapped:
            name, recorded = block.name, self._tapped[block.name]
        if (name, call) not in self._lent:
            output = _brought(recorded[call])
            self._lent[name, call] = block.tower, output, _versions(output)
        return self._lent[name, call][1]

    def share_again(self, block: Block, call: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Put into a block's arguments what it put there when it ran."""
        given = dict(_mappings(args, kwargs))
        for one in self._shared.get((block.name, call), ()):
            given[one.argument][one.key] = _brought(one.value)

    def check(self) -> None:
        """Refuse a model that has written into what was brought, as :meth:`Record.check` does for what is kept."""
        for tower, output, versions in self._lent.values():
            _refuse_written(tower, versions, output)


def _lying(values: Any) -> Any:
    """Give the tensors that lie on a disk among nested values as they lie there."""
    return map_tensors(values, lambda kept: kept.tensor, OnDisk)


def _brought(values: Any) -> Any:
    """Bring what lies on a disk among nested values to the devices that it was on."""
    return map_tensors(values, OnDisk.brought, OnDisk)


def kept_in(folder: Path | None, values: Any) -> Any:
    """Put the tensors among nested values on the disk of a folder; None leaves them where they are.

    One that lies in a file already stays there.
    """
    if folder is None:
        return values
    return map_tensors(values, lambda tensor: tensor if lies_on_disk(tensor) else on_disk(tensor, folder))


class Records(dict[int, Record]):
    """The records of a process' own batches, by their numbers."""

    def __missing__(self, number: int) -> Record:
        own = ", ".join(map(str, self)) or "none"
        raise ModelError(
            f"batch {number} is another process', and this one has {own}: each() computes something of every batch"
        )


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

            before = {argument: dict(mapping) for argument, mapping in _mappings(args, kwargs)}
            if self._home is not None:
                output = self._placement.call(self._home, watched, args, kwargs)
            else:
                output = self._placement.run(block.module, watched, args, kwargs)
            self._record.keep(block, number, [*_shared(before, args, kwargs)])
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
                    f"{block.name} runs before {previous.name}; its adapter must list blocks in the order they run"
                )
        self._calls[index] += 1
        return call

    def _check_calls(self) -> None:
        for block, calls in zip(self._blocks, self._calls, strict=True):
            if calls != block.calls and (calls == 0 or block.calls is not None):
                declared = block.calls or "some"
                raise ModelError(f"{block.name} ran {calls} times in one forward; its adapter declares {declared}")


def _versions(outputs: Any) -> list[int]:
    """Give a number for each tensor that changes when it is written to."""
    return [tensor._version for tensor in tensors_in(outputs)]


def _refuse_written(tower: str, before: list[int], outputs: Any) -> None:
    if before != _versions(outputs):
        raise ModelError(f"the model writes in place into what the blocks of its {tower} tower return")


def _mappings(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str | int, MutableMapping[Any, Any]]]:
    """Yield the mappings among a block's arguments, each with its name or place."""
    yield from ((place, value) for place, value in enumerate(args) if isinstance(value, MutableMapping))
    yield from ((name, value) for name, value in kwargs.items() if isinstance(value, MutableMapping))


def _shared(
    before: Mapping[str | int, Mapping[Any, Any]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[_Shared]:
    """Yield what is in the mappings now and was not, or was another."""
    for argument, mapping in _mappings(args, kwargs):
        for key, value in mapping.items():
            if before[argument].get(key) is not value:
                yield _Shared(argument, key, value)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a block's output, which may be a tensor, a tuple, a list or a mapping of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)
