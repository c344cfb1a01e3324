"""Join the processes that torchrun, or ``--processes``, has started for one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ecoflap.core.errors import EcoflapError, RankError, SaidElsewhereError
from ecoflap.core.ranks.launch import are_several
from ecoflap.core.ranks.processes import Processes
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.ranks.watch import Watch

_WAITS = timedelta(days=7)
"""How long one process waits for another: the first may export for hours. Whoever is gone is found out otherwise."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """Give the processes of this run: those that torchrun started, or this one alone.

    An error in one of them ends all. Each raises why: the one whose error it is that, said by rank; others that this
    one has ended the run; and one that has found the same as another, that this was said there.
    """
    if not are_several():
        yield ALONE
        return
    by_device = _own_device()
    try:
        distributed.init_process_group("nccl" if by_device else "gloo", timeout=_WAITS)
        group = distributed.new_group(backend="gloo", timeout=_WAITS) if by_device else None
        watch = Watch(_store(), distributed.get_rank(), distributed.get_world_size())
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"the processes of this run cannot find each other by what the environment says, as torchrun sets RANK, "
            f"WORLD_SIZE, MASTER_ADDR and MASTER_PORT: {error}"
        ) from error
    watch.start()
    try:
        yield Processes(watch, group, by_device=by_device)
        distributed.barrier(group=group)
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
    if watch.lost is not None and not was_stopped:
        return RankError(watch.lost) if watch.speaks else SaidElsewhereError(watch.lost)
    if isinstance(error, RankError):
        return error
    problems = error.problems if isinstance(error, EcoflapError) else (str(error) or repr(error),)
    first = watch.tell(*(["it was stopped"] if was_stopped else problems))
    if not isinstance(error, EcoflapError) or watch.rank == 0:
        return error
    # What all processes find, as a mistake in their recipe, they word alike: what one has said need not be said again.
    if first["problems"] == [*problems] and first["rank"] != watch.rank:
        return SaidElsewhereError(*problems)
    return RankError(*(f"rank {watch.rank} of {watch.size}: {problem}" for problem in problems))


def _own_device() -> bool:
    """Take the GPU of this process' number on its machine; say whether each process there has one of its own."""
    if not torch.cuda.is_available():
        return False
    number, there = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    torch.cuda.set_device(number % there)
    return int(os.environ.get("LOCAL_WORLD_SIZE") or there) <= there


def _store() -> Store:
    """Connect to the store by which the processes found each other; a connection serves one thread at a time."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"ecoflap {attempt}", store)
