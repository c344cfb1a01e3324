"""Several processes that do something together, as torchrun would start them."""

import os
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


def several(size: int, call: Callable[[Ranks], Any], folder: Path) -> list[Ended]:
    """Call it in several processes, which is quicker in forks than starting Python anew.

    :param folder: Where the processes leave what they say.
    """
    store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    children = {_forked(rank, size, store.port, call, folder / f"said by {rank}"): rank for rank in range(size)}
    ended = [Ended(0, "")] * size
    for _ in range(size):
        child, status = os.waitpid(-1, 0)
        rank, code = children[child], os.waitstatus_to_exitcode(status)
        if code:
            tell(PrefixStore("ecoflap 0", store), rank, f"it ended with {code}")
        ended[rank] = Ended(code, (folder / f"said by {rank}").read_text())
    return ended


def _forked(rank: int, size: int, port: int, call: Callable[[Ranks], Any], said: Path) -> int:
    said.write_text("")
    child = fork()
    if child:
        return child
    try:
        number = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        os.environ.update({**number, **found, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)})
        with joined() as ranks:
            call(ranks)
        os._exit(0)
    except EcoflapError as error:
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(2)
    finally:
        traceback.print_exc()
        os._exit(1)
