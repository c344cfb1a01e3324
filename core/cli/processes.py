"""How many processes a command starts, which no machine may be too small for before they have read anything.

And what ties a run to the sweep that has started it.
"""

from pathlib import Path
from typing import Annotated

import typer

from ecoflap.core.cli.stopping import end_with_starter
from ecoflap.core.ranks.launch import are_several

EMPTY = 150 << 20
"""Bytes that a process holds when it has imported torch and read no model yet: 145 to 160 MB on Linux."""


def _fitting(size: int) -> int:
    """Refuse so many processes that the memory is full when they have begun: the system would kill them, or others.

    Each of them is given the same number, and finds the memory that the others have left.
    """
    if size == 1 or are_several():
        return size
    from ecoflap.core.cores import usable_cores
    from ecoflap.core.machine.memory import available_memory

    free = available_memory()
    if free is not None and size * EMPTY > free:
        raise typer.BadParameter(
            f"{size} processes hold {size * EMPTY / 1e9:.3g} GB before any of them reads a model, and {free / 1e9:.3g} "
            f"GB of memory are free. More than there are cores, {usable_cores()} here, are of no use."
        )
    return size


ProcessesOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Do it in N processes on this machine; torchrun does on several.",
        callback=_fitting,
    ),
]
RunsAtOnceOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="Do N runs at once, each in a process.", callback=_fitting)
]


def _tied(file: Path | None) -> Path | None:
    """End with the sweep, which alone names such a file."""
    if file is not None:
        end_with_starter()
    return file


FailureOption = Annotated[
    Path | None,
    typer.Option(
        hidden=True, help="Where a sweep is told what the run failed of; it holds stdin open.", callback=_tied
    ),
]
