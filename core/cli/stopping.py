"""End a command that is stopped from outside as its user expects."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Terminated(KeyboardInterrupt):
    """Says that SIGTERM was received, by which a cluster's scheduler ends a process."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the command with a word on how to go on, instead of a traceback.

    The exit code is 130 or 143, as of a process that the signal has ended.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        print("\necoflap: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
