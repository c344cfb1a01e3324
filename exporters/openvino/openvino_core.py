"""Hold the one ``openvino.Core`` of this process, and read what its errors say.

A Core that compiles for the CPU gives the main thread another stack to handle signals on, and takes its memory back
when it goes. Where two of them overlap, the thread is left with a stack whose memory is gone, and the next Ctrl-C ends
the process by SIGSEGV (seen with OpenVINO 2026.4). So all that compiles does it by this one, which stays.
"""

from functools import cache
from importlib import import_module
from typing import Any


@cache
def openvino_core() -> Any:
    """Give the ``openvino.Core`` that this process compiles by.

    :raises ImportError: Where openvino is not installed.
    """
    return import_module("openvino").Core()


def last_line(error: Exception) -> str:
    """Give what an error of OpenVINO ends with; before that stand lines of its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
