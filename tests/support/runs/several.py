"""Several processes that do something together, as torchrun would start them."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from killing import fork
from torch.distributed import PrefixStore, TCPStore

from ecoflap.core.errors import EcoflapError
from ecoflap.core.ranks.join import joined
from ecoflap.core.ranks.ranks import Ranks
from ecoflap.core.ranks.watch import tell


class Ended(NamedTuple):
    """Tells how a process ended: with the code that the command would have, and what it would have said."""

    code: int
    said: str


class Started(NamedTuple):
    """Says how several processes are started, where that is not as ``--processes`` does it.

    :param lost: Those that end with code 3 before they join.
    :param comes: Seconds that the others wait for them.
    :param hears: Whether what has started them tells the others how one has ended, as nobody on another machine does.
    :param holds: Whether it holds the store by which they find each other; otherwise the first of them does.
    :param apart: Whether each writes its errors into a file of its own, as where torchrun is told to redirect them.
    """

    lost: tuple[int, ...] = ()
    comes: float = 60.0
    hears: bool = True
    holds: bool = True
    apart: bool = False


BY_PROCESSES = Started()


def several(size: int, call: Callable[[Ranks], Any], folder: Path, how: Started = BY_PROCESSES) -> list[Ended]:
    """Call it in several processes, which is quicker in forks than starting Python anew.

    :param folder: Where the processes leave what they say.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    own_port: int = listener.getsockname()[1]
    port = own_port if how.holds else _free_port()
    children = {_forked(rank, size, port, call, folder / f"said by {rank}", how): rank for rank in range(size)}
    # Behind the forks, which keep for ever what a thread has locked just then, and the store answers from one. Up to
    # torch 2.6 the one of libuv takes no socket that listens already.
    store = TCPStore(
        "127.0.0.1", own_port, size, True, wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=False
    )
    ended = [Ended(0, "")] * size
    for _ in range(size):
        child, status = os.waitpid(-1, 0)
        rank, code = children[child], os.waitstatus_to_exitcode(status)
        if code and how.hears:
            tell(PrefixStore("ecoflap 0", store), rank, f"it ended with {code}")
        ended[rank] = Ended(code, (folder / f"said by {rank}").read_text())
    return ended


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _forked(rank: int, size: int, port: int, call: Callable[[Ranks], Any], said: Path, how: Started) -> int:
    said.write_text("")
    child = fork()
    if child:
        return child
    try:
        if rank in how.lost:
            os._exit(3)
        if how.apart:
            os.dup2(os.open(said.with_suffix(".stderr"), os.O_CREAT | os.O_WRONLY), 2)
        number = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(how.holds)}
        os.environ.update({**number, **found, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)})
        with joined(how.comes) as ranks:
            call(ranks)
        os._exit(0)
    except EcoflapError as error:
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(2)
    finally:
        traceback.print_exc()
        os._exit(1)
