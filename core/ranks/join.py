"""Join the processes that torchrun, or ``--processes``, has started for one run."""

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ecoflap.core.errors import EcoflapError, RankError, SaidElsewhereError, one_line
from ecoflap.core.ranks.launch import are_several
from ecoflap.core.ranks.processes import Processes
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.ranks.watch import How, Watch, held_by_starter

_WAITS = timedelta(days=7)
"""How long one process waits for another: the first may export for hours. Whoever is gone is found out otherwise."""
_COMES = 600.0
"""Seconds that the others have to come: where many import torch from one disk that they share, it takes minutes."""
_TRY, _BETWEEN = 5.0, 0.2
"""Seconds that one try to reach the store takes at most, and seconds between two."""


@contextmanager
def joined(comes: float = _COMES) -> Iterator[Ranks]:
    """Give the processes of this run: those that torchrun started, or this one alone.

    :param comes: Seconds that the others have to come here. Those that have not are named.

    An error in one of them ends all. Each raises why: the one whose error it is that, said by rank; others that this
    one has ended the run; and one that has found the same as another, that this was said there.
    """
    if not are_several():
        yield ALONE
        return
    has_device = _has_own_device()
    place = _Place.told()
    store = place.store("ecoflap", comes)
    store.set_timeout(timedelta(seconds=30))
    watch = Watch(store, place.rank, place.size)
    try:
        by_device = watch.wait_for_all(comes, has_device=has_device)  # one backend for all: with two they would hang
        watch.start()
        group = _group(watch, place.store("ecoflap group", comes), by_device=by_device)
        processes = Processes(watch, group, by_device=by_device)
        yield processes
        processes.part()
    except BaseException as error:
        told = _told(error, watch)
        watch.let_hear()
        if told is error:
            raise
        raise told from error
    finally:
        watch.stop()
    distributed.destroy_process_group()


def _told(error: BaseException, watch: Watch) -> BaseException:
    """Tell the others why this process ends, and give what it is to raise."""
    watch.is_ending = True
    was_stopped = not isinstance(error, Exception) and not watch.has_interrupted  # by a signal from outside
    if was_stopped and watch.is_stopped_for_another():
        was_stopped = False
    if watch.lost is not None and not was_stopped:
        return RankError(watch.lost) if watch.speaks else SaidElsewhereError(watch.lost)
    if isinstance(error, RankError):
        return error
    problems = error.problems if isinstance(error, EcoflapError) else (str(error) or repr(error),)
    how = How.STOPPED if was_stopped else How.REFUSED if isinstance(error, EcoflapError) else How.FAILED
    first = watch.tell(*(["it was stopped"] if was_stopped else problems), how=how)
    if not isinstance(error, EcoflapError) or watch.rank == 0:
        return error
    # What all processes find, as a mistake in their recipe, they word alike: what one has said need not be said again.
    if first["problems"] == [*problems] and first["rank"] != watch.rank:
        return SaidElsewhereError(*problems)
    return RankError(*(f"rank {watch.rank} of {watch.size}: {problem}" for problem in problems))


def _has_own_device() -> bool:
    """Take the GPU of this process' number on its machine; say whether each process there has one of its own."""
    if not torch.cuda.is_available():
        return False
    number, there = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    torch.cuda.set_device(number % there)
    return int(os.environ.get("LOCAL_WORLD_SIZE") or there) <= there


@dataclass(frozen=True)
class _Place:
    """Says which of the processes this is, and where they find each other."""

    host: str
    port: int
    rank: int
    size: int

    @classmethod
    def told(cls) -> "_Place":
        """Read it from the environment.

        :raises RankError: With what is not said there, or is none.
        """
        try:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            if not 0 < port < 2**16:
                raise ValueError(f"MASTER_PORT is {port}, and ports are from 1 to 65535")
            if not 0 <= rank < size:
                raise ValueError(f"RANK is {rank}, and the ranks of {size} processes are from 0 to {size - 1}")
        except (ValueError, KeyError) as error:
            raise RankError(_cannot_meet(error)) from error
        return cls(host, port, rank, size)

    def store(self, use: str, seconds: float) -> PrefixStore:
        """Connect to the store, anew for each use: a connection serves one thread at a time.

        torchrun keeps its store when it starts processes again, and what those of before have left there, such as their
        addresses, would be taken for these. So each attempt has names of its own.

        :param use: What it is for, by which its names begin.
        :param seconds: How long to try.
        :raises RankError: Where it cannot be reached.
        """
        try:
            store = _store(self.host, self.port, seconds, holds=self.rank == 0 and not held_by_starter())
        except (OSError, RuntimeError) as error:
            raise RankError(_cannot_meet(error)) from error
        return PrefixStore(f"{use} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _store(host: str, port: int, seconds: float, *, holds: bool) -> TCPStore:
    """Connect to the store, and hear signals meanwhile: Python's handlers do not run while torch waits in C++.

    :param holds: Whether this process is to hold it, as the first one does where torchrun's own does not.
    :raises OSError: Where nobody answers in time.
    """
    until = time.monotonic() + seconds
    if not holds:
        _wait_for_answer(host, port, until)
    left = max(until - time.monotonic(), _TRY)
    limit = timedelta(seconds=left)
    found: Future[TCPStore] = Future()

    def connect() -> None:
        try:  # several of a process share the one that it holds: torch finds it there by its port
            store = TCPStore(host, port, is_master=holds, timeout=limit, wait_for_workers=False, multi_tenant=True)
        except Exception as error:
            found.set_exception(error)
        else:
            found.set_result(store)

    # What takes connections and says nothing, as a process that is stopped, torch would wait for without a limit.
    Thread(target=connect, name="ecoflap store", daemon=True).start()
    try:
        return found.result(left)
    except TimeoutError as error:
        raise OSError(f"what listens at {host}:{port} says nothing") from error


def _wait_for_answer(host: str, port: int, until: float) -> None:
    """Wait until something listens there. Torch itself would write frames of C++ where nothing does.

    :raises OSError: Where nothing does in time.
    """
    while True:
        try:
            socket.create_connection((host, port), _TRY).close()
            return
        except OSError as error:  # its machine's name, too, may be known only when it is up
            if time.monotonic() > until:
                raise OSError(f"nothing answers at {host}:{port}: {error}") from error
        time.sleep(_BETWEEN)


def _group(watch: Watch, store: Store, *, by_device: bool) -> Any:
    """Let the processes connect; give the group by which main memory is sent, None where that is the one of all.

    :param store: By which they tell each other their addresses.
    :raises RankError: With the one that has ended meanwhile: all had come. Or with what keeps them apart.
    """
    store.set_timeout(_WAITS)  # nccl connects two of them when they first speak to each other
    try:
        distributed.init_process_group(
            "nccl" if by_device else "gloo", timeout=_WAITS, store=store, rank=watch.rank, world_size=watch.size
        )
        return distributed.new_group(backend="gloo", timeout=_WAITS) if by_device else None
    except ValueError as error:
        raise RankError(_cannot_meet(error)) from error
    except RuntimeError as error:
        raise RankError(
            watch.who_is_gone(
                f"all processes have come, and cannot connect to each other: {one_line(error)}. Where a machine has "
                f"several networks, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME say which one leads to the others"
            )
        ) from error


def _cannot_meet(error: Exception) -> str:
    why = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
    return (
        f"the processes of this run cannot find each other by what the environment says, as torchrun sets RANK, "
        f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT, where torchrun itself or rank 0 has to answer: {why}. Where nothing "
        f"has started several processes, these are left over: unset RANK WORLD_SIZE"
    )
