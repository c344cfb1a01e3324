"""Describes the columns of tables that the command line prints and that pages hold."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Column:
    """Describes one column of a table.

    :param align: Which side its cells stand on: numbers on the right.
    :param wraps: Whether its texts are sentences, which a page breaks into lines.
    """

    title: str
    align: Literal["left", "right"] = "left"
    wraps: bool = False


def left(*titles: str) -> tuple[Column, ...]:
    """Return columns of texts."""
    return tuple(Column(title) for title in titles)


def right(*titles: str) -> tuple[Column, ...]:
    """Return columns of numbers."""
    return tuple(Column(title, "right") for title in titles)
