"""Join the processes that torchrun, or ``--processes``, has started for one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ecoflap.core.errors import EcoflapError, RankError, SaidElsewhereError
from ecoflap.core.ranks.launch import are_several
from ecoflap.core.ranks.processes import Processes
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.ranks.watch import How, Watch

_WAITS = timedelta(days=7)
"""How long one process waits for another: the first may export for hours. Whoever is gone is found out otherwise."""
_COMES = 600.0
"""Seconds that the others have to come: where many import torch from one disk that they share, it takes minutes."""


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
    watch = _watch(comes)
    try:
        by_device = watch.wait_for_all(comes, has_device=has_device)  # one backend for all: with two they would hang
        watch.start()
        group = _group(by_device)
        processes = Processes(watch, group, by_device=by_device)
        yield processes
        processes.gather(None)  # and no barrier: who waits here for one that is gone is told so as in any exchange
    except BaseException as error:
        told = _told(error, watch)
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


def _watch(seconds: float) -> Watch:
    """Give what watches over them, by a connection of its own to the store: one serves one thread at a time.

    :param seconds: How long to try.
    """
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # Where torchrun's own process holds no store, the first rank does, and torch finds it there by its port.
        holds = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        limit = timedelta(seconds=seconds)
        store = TCPStore(host, port, is_master=holds, timeout=limit, wait_for_workers=False, multi_tenant=True)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:  # a port beyond 65535 is a TypeError
        raise RankError(_cannot_meet(error)) from error
    store.set_timeout(timedelta(seconds=30))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Watch(PrefixStore(f"ecoflap {attempt}", store), rank, size)


def _group(by_device: bool) -> Any:
    """Let the processes connect; give the group by which main memory is sent, None where that is the one of all."""
    try:
        distributed.init_process_group("nccl" if by_device else "gloo", timeout=_WAITS)
        return distributed.new_group(backend="gloo", timeout=_WAITS) if by_device else None
    except (RuntimeError, ValueError) as error:
        raise RankError(_cannot_meet(error)) from error


def _cannot_meet(error: Exception) -> str:
    why = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
    return (
        f"the processes of this run cannot find each other by what the environment says, as torchrun sets RANK, "
        f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT, where torchrun itself or rank 0 has to answer: {why}"
    )
