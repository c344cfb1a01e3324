"""End a command that is stopped from outside as its user expects, and with the code by which shells tell it.

A process that signal n has ended has the code 128 + n: 130 after Ctrl-C, 143 after SIGTERM, by which a cluster's
scheduler ends one, and 141 where nobody reads its output any more, as behind ``| head``.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from ecoflap.core.contracts.events import Event, RunStarted
from ecoflap.core.errors import WayOut
from ecoflap.core.ranks.launch import are_several, how_ended

GOES_ON = "stopped; the same command goes on from here"
NOBODY_READS = 128 + getattr(signal, "SIGPIPE", 13)  # which Windows has not
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_AGAIN_AFTER = 0.01
"""Seconds, in which Python leaves the finaliser that a signal was lost in."""
_WRITTEN = "one of a model/ or a packed one of an export"
"""Which files are read by a command that reads what runs have written."""
_SPEAKS = 'while read -r line; do case $line in *": Bus error"*) printf "\\n%s\\n" "$0" >&2 ;; esac; done'
"""What a shell does that is given what faulthandler writes, and is called by what there is to say."""


class Stopped(WayOut):
    """Says that a signal was received. It is no KeyboardInterrupt, which libraries catch and give codes of their own.

    :param number: The signal's.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@contextmanager
def stoppable(said: str = GOES_ON, *, maps_files: bool = False) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the command with a word, instead of a traceback. A second one ends it at once.

    :param said: The word, such as how to go on. Of two contexts within each other the inner one says it.
        Empty where another process says it.
    :param maps_files: Whether it reads mapped files, so that SIGBUS is to end it with a word, too.
    """
    before = {number: signal.signal(number, _stop) for number in _heeded()}
    try:
        if maps_files:
            leave_word_of_sigbus()
        with _not_lost():
            yield
    except (KeyboardInterrupt, Stopped) as stop:
        if said:
            print(f"\necoflap: {said}", file=sys.stderr)
        sys.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _not_lost() -> Iterator[None]:
    """Send a signal again where what it raised was lost.

    Python drops what is raised in a finaliser or in the callback of a weak reference, and there it often looks at
    signals first while it collects garbage: the command would go on as though nobody had stopped it.
    """
    before = sys.unraisablehook

    def hear(lost: Any) -> None:
        if not isinstance(lost.exc_value, Stopped):
            before(lost)
            return
        number = lost.exc_value.number
        signal.signal(number, _stop)
        # Not from here: this is called within what drops it, and would drop it again.
        threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def ended(run: Callable[[], int]) -> int:
    """Give the code that a command ends with; it is another where nobody reads all that it said.

    :param run: The command, which gives its own code.
    """
    stdout = sys.stdout
    try:
        code = run()
        if sys.stdout is stdout:  # typer puts something else in its place once nobody reads it
            return code if stdout is None else _all_written(code)  # it is none where it was closed from the first
    except BrokenPipeError:
        pass
    sys.stdout = stdout
    _read_by_nobody()
    return NOBODY_READS


def _all_written(code: int) -> int:
    """Write what is left of the output, and give the code that a command ends with; another where that cannot be."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"ecoflap: the output could not be written: {error.strerror}.", file=sys.stderr)
        sys.stdout = None  # what is left of it cannot be as Python ends, either
        return NOBODY_READS
    return code


def end_at_once() -> None:
    """Let a signal from now on end the process at once, for its work is done and only Python's own is left."""
    for number in _heeded():
        signal.signal(number, _exit)


def end_with_starter() -> None:
    """End this process at once where what started it is gone, which holds the other end of stdin until then.

    Whoever is killed passes no signal on. What is done is on the disk whole, as where this process is killed itself.
    Stdin is empty from then on: who reads from it would wait for ever, and what is started here is not to hold it.
    """
    starter, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        while os.read(starter, 1):
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="ecoflap starter", daemon=True).start()


def leave_last_word(event: Event) -> None:
    """Hear a run begin, and where its model stays in its files leave word of what SIGBUS means with a shell.

    With several processes, their starter says it.
    """
    if not isinstance(event, RunStarted) or are_several() or not hasattr(signal, "SIGBUS"):
        return
    from ecoflap.core.ranks.watch import How, said_of
    from ecoflap.core.record.folder import RunFolder

    if RunFolder(event.folder).read_recipe()["model"].get("offload") == "disk":
        _leave_with_shell(said_of({"rank": None, "problems": [how_ended(-signal.SIGBUS)], "how": How.FOUND}, 1))


def leave_word_of_sigbus() -> None:
    """Leave word with a shell of what SIGBUS means, for a command that reads mapped files and does not go on."""
    if hasattr(signal, "SIGBUS"):
        why = how_ended(-signal.SIGBUS, _WRITTEN)
        _leave_with_shell(f"this command has ended: {why}. Put back what was there, and start it again")


def _leave_with_shell(said: str) -> None:
    """Have a shell say something if SIGBUS ends this process, unless faulthandler is somebody else's already.

    By SIGBUS the system ends at once who reads a mapped file that was cut shorter. A handler in Python would never run:
    the instruction that has failed is tried again first. That of faulthandler is no Python; what it writes goes to a
    shell, and the process ends as it would have.
    """
    if faulthandler.is_enabled():
        return
    listens, speaks = os.pipe()
    try:
        # It is in the background of a shell that ends at once, out of reach of Ctrl-C, and ends with this process.
        subprocess.run(
            ["/bin/sh", "-c", f"exec 3<&0; {{ {_SPEAKS}; }} <&3 &", f"ecoflap: {said}"],
            stdin=listens,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no shell, no word
        os.close(speaks)
    else:
        faulthandler.enable(speaks, all_threads=False)
    finally:
        os.close(listens)


def _heeded() -> list[signal.Signals]:
    """List the signals that stop this process. One that is ignored, as behind nohup, stays so."""
    return [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _read_by_nobody() -> None:
    """Send what is still to be written nowhere, or Python would complain of it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    finally:
        os.close(nowhere)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for other in _heeded():
        signal.signal(other, _exit)
    raise Stopped(number)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)
