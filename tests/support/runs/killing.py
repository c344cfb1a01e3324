"""Processes that kill themselves at a given moment of a run, with no chance to clean up."""

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KILLER = '''
"""An observer that kills its process: at the n-th event of a kind, or about the rename of a file."""

import os
import signal
from pathlib import Path

from ecoflap import hookimpl

KIND, _, REST = os.environ["KILL_AT"].partition(":")
seen = 0


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def ecoflap_on_event(event):
    global seen
    what, _, count = REST.rpartition(":")
    if KIND == "event" and what in f"{type(event).__name__} {getattr(event, 'stage', '')}":
        seen += 1
        if seen == int(count):
            die()


def dangerous(rename):
    def renamed(source, target, **keywords):
        name, _, when = REST.rpartition(":")
        hit = str(target).endswith(name)
        if hit and when == "before":
            die()
        rename(source, target, **keywords)
        if hit and when == "after":
            die()

    return renamed


if KIND == "rename":
    os.replace, os.rename = dangerous(os.replace), dangerous(os.rename)
'''


def killer_in(folder: Path) -> Callable[[str], dict[str, str]]:
    """Write the observer into a folder; give what makes the environment of a process that dies at a point.

    :param folder: Of the plugin and of the registry file that names it.
    """
    (folder / "killer.py").write_text(KILLER)
    (folder / "killer.yaml").write_text("version: 1\nplugins: {killer: killer}\n")

    def killer(point: str) -> dict[str, str]:
        return {"KILL_AT": point, "PYTHONPATH": str(folder), "ECOFLAP_REGISTRY": str(folder / "killer.yaml")}

    return killer


def fork() -> int:
    """Fork so that nothing is collected in the child that was garbage before.

    A compiled model of OpenVINO, which an earlier test left, waits there for threads that a child has not, or crashes.
    """
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which do nothing here
            child = os.fork()
        if not child:
            gc.freeze()
    finally:
        gc.enable()
    return child


def in_a_fork(environment: Mapping[str, str], call: Callable[[], Any]) -> int:
    """Call it in a process of its own, which is quicker than starting Python anew; its exit status."""
    child = fork()
    if child == 0:
        try:
            os.environ.update(environment)
            sys.path[:0] = [environment.get("PYTHONPATH", "")]
            call()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
