"""Run the command in this process, and tell a refusal, which a user understands, from a traceback."""

import io
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from types import FrameType
from typing import NamedTuple
from unittest.mock import patch


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Ended(NamedTuple):
    """How a command ended.

    :param code: 0 done, 1 in part, 2 refused.
    :param trace: Where it came to one.
    """

    code: int
    out: str
    err: str
    trace: str = ""


def run_command(*arguments: object, seconds: float = 0) -> Ended:
    """Run a command.

    :param seconds: It is interrupted after so many; 0 for never.
    """
    from ecoflap.core.cli.main import main

    signal.signal(signal.SIGALRM, _interrupt)
    out, err, code, trace = io.StringIO(), io.StringIO(), 0, ""
    with patch.object(sys, "argv", ["ecoflap", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            code, trace = 1, traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return Ended(code, out.getvalue(), err.getvalue(), trace)
