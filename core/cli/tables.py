"""Print titled tables, which is all that the command line prints of results."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ecoflap.core.text.columns import Column
from ecoflap.core.text.printable import printable


@dataclass(frozen=True)
class Section:
    """Holds a table with its title.

    :param title: Nothing is printed for an empty one.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


UNFOLDED = 10_000
"""Columns where nothing has to fit a screen: each row on a line of its own, for grep and for files."""


class _Output(Console):
    """Is rich's console, but says that nobody reads it any more by the system's own error: rich would end with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def show(sections: Sequence[Section]) -> None:
    """Print to standard output: as wide as the terminal, or as wide as the rows where it is none.

    The variable COLUMNS, which a shell keeps to itself unless it is exported, says another width.
    """
    console = _Output(emoji=False)  # a part may be my:Key
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console = _Output(emoji=False, width=UNFOLDED)
    for section in sections:
        if section.title:
            console.print(printable(section.title), style="bold", highlight=False, markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in section.columns:
            table.add_column(Text(printable(column.title)), justify=column.align, overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table, highlight=False)
