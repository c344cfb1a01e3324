"""Several processes of one run, which tell each other things by torch.distributed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ecoflap.core.errors import RankError, one_line
from ecoflap.core.ranks.parcels import Parcel, Tag, packed, unpacked
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.ranks.watch import Watch

Key = TypeVar("Key")
Value = TypeVar("Value")
_LETS_GO = 0.2
"""Seconds in which a thread of torch's lets go of what it has sent: it needs microseconds, once a core is free."""


class Processes(Ranks):
    """One of several processes.

    :param watch: Knows which of them has failed.
    :param group: In which tensors in main memory are sent, and everything that is no tensor.
    :param by_device: Whether tensors on a device go from device to device, by nccl.
    """

    def __init__(self, watch: Watch, group: Any, *, by_device: bool) -> None:
        self.rank, self.size = watch.rank, watch.size
        self._watch, self._group, self._by_device = watch, group, by_device

    def gather(self, mine: Value) -> list[Value]:
        parcel, tensors = packed(mine)
        with self._hearing():
            parcels: list[Any] = [None] * self.size
            distributed.all_gather_object(parcels, parcel, group=self._group)
            found = [self._broadcast(rank, one, tensors) for rank, one in enumerate(parcels)]
        return [
            mine if rank == self.rank else unpacked(one, there)
            for rank, (one, there) in enumerate(zip(parcels, found, strict=True))
        ]

    def collect_each(
        self, mine: dict[Key, Value], owner_of: Mapping[Key, int]
    ) -> Iterator[tuple[Key, dict[int, Value]]]:
        """Give things to their owners: at once what there is of all of them, and then the tensors of one by one."""
        sent = {key: packed(mine[key]) for key, owner in owner_of.items() if owner != self.rank and key in mine}
        told = self.gather({key: parcel for key, (parcel, _) in sent.items()})
        for key, owner in owner_of.items():
            if owner == self.rank:
                parts = {
                    rank: mine.pop(key) if rank == self.rank else self._received(parcels[key], rank)
                    for rank, parcels in enumerate(told)
                    if key in (mine if rank == self.rank else parcels)
                }
                if parts:
                    yield key, parts
            elif key in sent:
                self._send(*sent.pop(key), owner)
                del mine[key]

    def first(self, make: Callable[[], Value]) -> Value:
        made = make() if self.rank == 0 else None
        parcel, tensors = packed(made) if self.rank == 0 else (Parcel(b"", ()), [])
        with self._hearing():
            parcels = [parcel]
            distributed.broadcast_object_list(parcels, src=0, group=self._group)
            there = self._broadcast(0, parcels[0], tensors)
        return made if self.rank == 0 else unpacked(parcels[0], there)  # type: ignore[return-value]

    def part(self) -> None:
        """Wait until all others are here, too, and until torch's threads hold nothing any longer that was sent.

        It is an exchange and no barrier: who waits here for one that is gone is told so as in any other.
        """
        self.gather(None)
        # In torch 2.6 a group that ends waits for its threads and keeps Python's lock meanwhile; a thread that is the
        # last to hold a tensor waits for that lock. It gets it while this one sleeps.
        time.sleep(_LETS_GO)

    def why(self, error: BaseException) -> str:
        return self._watch.lost or super().why(error)

    def _broadcast(self, source: int, parcel: Parcel, mine: list[Tensor]) -> list[Tensor]:
        """Send what one process has to all, and give it.

        :param mine: The tensors, where this is that process.
        """
        found = []
        for number, tag in enumerate(parcel.tags):
            data = self._bytes(mine[number], tag) if source == self.rank else self._room(tag)
            distributed.broadcast(data, source, group=self._group_of(data))
            found.append(mine[number] if source == self.rank else tag.tensor_of(data))
        return found

    def _send(self, parcel: Parcel, tensors: Sequence[Tensor], to: int) -> None:
        """Send the tensors of what another knows the parcel of."""
        with self._hearing():
            for tensor, tag in zip(tensors, parcel.tags, strict=True):
                data = self._bytes(tensor, tag)
                distributed.send(data, to, group=self._group_of(data))

    def _received(self, parcel: Parcel, source: int) -> Any:
        """Receive the tensors of a parcel, and put together what it is of."""
        found = []
        with self._hearing():
            for tag in parcel.tags:
                data = self._room(tag)
                distributed.recv(data, source, group=self._group_of(data))
                found.append(tag.tensor_of(data))
        return unpacked(parcel, found)

    def _bytes(self, tensor: Tensor, tag: Tag) -> Tensor:
        """Give a tensor as bytes, of which every backend knows how to send them, where its backend reads them."""
        flat = tag.bytes_of(tensor)
        return flat if self._by_device else flat.cpu()

    def _room(self, tag: Tag) -> Tensor:
        return torch.empty(tag.bytes, dtype=torch.uint8, device=tag.device if self._by_device else "cpu")

    def _group_of(self, data: Tensor) -> Any:
        return self._group if data.device.type == "cpu" else None  # None is nccl's, of all processes

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Say who is gone, where a connection breaks."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise RankError(
                f"rank {self.rank}'s device has no memory for what another process sends it: {one_line(error)}. Set "
                f"calibration.keep: disk or model.offload: cpu, or lower calibration.batch_size"
            ) from error
        except RuntimeError as error:
            raise RankError(self._watch.who_is_gone()) from error
