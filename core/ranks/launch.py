"""Start a command several times on this machine, as torchrun does, and end with all of them as they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ecoflap.core.cores import usable_cores
from ecoflap.core.errors import RankError

_PATIENCE = 12.0
"""Seconds that the others have to end by themselves when one has failed."""
_LOOKS = 0.1
"""Seconds between two looks at the processes."""
_QUIET = ("TORCH_CPP_LOG_LEVEL", "ERROR")
"""A connection that breaks is no error for torch, but a warning by twenty frames; each process says what it means."""


def are_several() -> bool:
    """Say whether this is one of several processes: torchrun says so in the environment, and so does this.

    What is no number says so too, and is refused where they are to find each other.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    return "RANK" in os.environ and (not size.isdecimal() or int(size) > 1)


def is_first() -> bool:
    """Say whether this is the first of the processes, or the only one."""
    return not are_several() or os.environ["RANK"] == "0"


def refuse_left_over(processes: int) -> None:
    """Refuse to start so many processes where the environment says that this is one of several, and nothing started it.

    :raises RankError: With what to unset. A process that torchrun or ``--processes`` has started may be told both.
    """
    if processes > 1 and are_several() and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
        raise RankError(
            f"--processes {processes} starts processes, and RANK={os.environ['RANK']} and "
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} say that this is one of several already. Unset them where they are "
            f"left over: unset RANK WORLD_SIZE; or leave --processes out"
        )


def quieten() -> None:
    """Keep torch, which reads it when it is imported, from warning by frames of C++ where another process is gone."""
    if are_several():
        os.environ.setdefault(*_QUIET)


def refuse_several(command: str) -> None:
    """Refuse to let several processes do a command that each of them would do the whole of, in one folder.

    :raises RankError: In the first of them. Others that torchrun has started end as though all were well: it ends all
        as soon as one fails, and might do so before the first has spoken.
    """
    if not is_first() and "TORCHELASTIC_RUN_ID" in os.environ:
        sys.exit(0)
    require_alone(command)


def require_alone(command: str) -> None:
    """Refuse the same in each of the processes, where Python code calls it: one that ended would end its caller.

    :raises RankError: Where this is one of several.
    """
    if not are_several():
        return
    several = "; ecoflap sweep … --processes 2 does two runs at once" if command == "sweep" else ""
    raise RankError(
        f"ecoflap {command} is for one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}: "
        f"torchrun shares ecoflap run alone. Start it without torchrun, and unset RANK and WORLD_SIZE where they are "
        f"left over{several}"
    )


def launch(size: int, command: Sequence[str]) -> int:
    """Run a command in several processes, which :func:`ecoflap.ranks.joined` joins, and give the code to end with.

    It is that of the process that has failed, which is named here where nobody was left to name it. A signal that this
    process gets goes to all of them.

    :param size: How many processes.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    from ecoflap.core.ranks.watch import said_of, speaker_of, tell

    # This process holds the store by which they find each other, and stays when one of them is gone.
    store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    with _passing_on() as children:
        for rank in range(size):
            children.append(subprocess.Popen(command, env=_environment(rank, size, store.port), start_new_session=True))
        told: dict[str, Any] | None = None
        until = None
        while any(child.poll() is None for child in children):
            time.sleep(_LOOKS)
            codes = [child.poll() for child in children]
            if until is None and any(codes):
                ended = next(rank for rank, code in enumerate(codes) if code)
                told = tell(PrefixStore("ecoflap 0", store), ended, how_ended(codes[ended] or 0))
                until = time.monotonic() + _PATIENCE
            if until is not None and time.monotonic() > until:
                for child in children:
                    child.kill()
    ended_with = [int(child.returncode) for child in children]
    if told is not None and all(ended_with[rank] < 0 for rank in {told["rank"], speaker_of(told)} & {*range(size)}):
        print(f"ecoflap: {said_of(told, size)}", file=sys.stderr)
    code = ended_with[told["rank"]] if told is not None else 0
    code = code or next(filter(None, ended_with), 0)
    return 128 - code if code < 0 else code


def how_ended(code: int, read: str = "a model's with model.offload: disk") -> str:
    """Say how a process ended that has not said so itself, by the code that subprocess has for it.

    :param read: Which files it may have been reading, of which one that is cut shorter ends it by SIGBUS.
    """
    if code >= 0:
        return f"it ended with code {code}"
    name = signal.Signals(-code).name
    # Its user may not know what that comes from.
    means = f", as where a file is cut shorter that is being read, such as {read}" if name == "SIGBUS" else ""
    return f"{name} ended it{means}"


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Give what torchrun would put into the environment of a process, and quiet there."""
    number, there = str(rank), str(size)
    threads = str(max(1, usable_cores() // size))
    return {
        "OMP_NUM_THREADS": threads,
        _QUIET[0]: _QUIET[1],
        **os.environ,
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": there,
        "LOCAL_WORLD_SIZE": there,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",  # this may itself be of a second attempt of torchrun's
    }


@contextmanager
def _passing_on() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Pass signals on to processes that are added to the list, which are in sessions of their own; end with them."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    taken = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in taken}
    try:
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
