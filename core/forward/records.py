"""What forwards of one batch have recorded of blocks, and what a later forward has of it in their place."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.core.disk.on_disk import OnDisk, lies_on_disk, on_disk
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.nested import map_tensors, tensors_in
from ecoflap.core.model.anatomy import Block


@dataclass(frozen=True)
class Shared:
    """Something that a block put into a mapping that it was given.

    :param argument: The mapping's name or place among the block's arguments.
    """

    argument: str | int
    key: Any
    value: Any


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
        self._shared: dict[tuple[str, int], list[Shared]] = {}

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

    def keep(self, block: Block, call: int, shared: list["Shared"]) -> None:
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
        shared: Mapping[tuple[str, int], Sequence[Shared]],
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
        given = dict(mappings_in(args, kwargs))
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
            f"batch {number} is none of this process', which has {own}: there are no others, or other processes have "
            f"them, and each() computes something of every batch"
        )


def _versions(outputs: Any) -> list[int]:
    """Give a number for each tensor that changes when it is written to."""
    return [tensor._version for tensor in tensors_in(outputs)]


def _refuse_written(tower: str, before: list[int], outputs: Any) -> None:
    if before != _versions(outputs):
        raise ModelError(f"the model writes in place into what the blocks of its {tower} tower return")


def mappings_in(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str | int, MutableMapping[Any, Any]]]:
    """Yield the mappings among a block's arguments, each with its name or place."""
    yield from ((place, value) for place, value in enumerate(args) if isinstance(value, MutableMapping))
    yield from ((name, value) for name, value in kwargs.items() if isinstance(value, MutableMapping))


def newly_shared(
    before: Mapping[str | int, Mapping[Any, Any]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[Shared]:
    """Yield what is in the mappings now and was not, or was another."""
    for argument, mapping in mappings_in(args, kwargs):
        for key, value in mapping.items():
            if before[argument].get(key) is not value:
                yield Shared(argument, key, value)
