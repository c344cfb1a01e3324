"""Rows of a dataset that cannot be used: counted, the first of them named, and passed over only where that is asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Skippable: TypeAlias = Literal["missing", "unreadable", "empty"]
SKIPPABLE: tuple[Skippable, ...] = ("missing", "unreadable", "empty")
NAMED = 5


class Flaw(Exception):
    """Why one row cannot be used.

    :param kind: Of :data:`SKIPPABLE`, or ``malformed`` for what is never skipped.
    :param told: The row, with what it has there.
    """

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(told)
        self.kind, self.told = kind, told


@dataclass(frozen=True)
class Flaws:
    """Those of one pass over the rows, as texts alone: an exception would hold on to its image.

    :param name: Of the dataset.
    :param what: By kind, what such rows do: ``name an image file that is not there``.
    :param skip: The kinds that are passed over.
    """

    name: str
    what: Mapping[str, str]
    skip: Sequence[str]
    errors: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def passes(self, kind: Skippable) -> bool:
        """Whether rows with it are passed over."""
        return kind in self.skip

    def add(self, flaw: Flaw) -> None:
        (self.skipped if flaw.kind in self.skip else self.errors).append((flaw.kind, flaw.told))

    def as_errors(self, drawn: int, hint: str = "") -> Iterator[str]:
        """:param drawn: How many rows were looked at.
        :param hint: What else to do about missing files.
        """
        for kind, sentence in self._sentences(self.errors, drawn):
            way_out = f", or set skip: [{kind}] to pass over such rows" if kind in SKIPPABLE else ""
            yield f"{sentence}. Mend them{way_out}.{f' {hint}' if hint and kind == 'missing' else ''}"

    def as_notes(self, drawn: int) -> Iterator[str]:
        """:param drawn: How many rows were looked at."""
        return (f"{sentence}. They were passed over." for _, sentence in self._sentences(self.skipped, drawn))

    def _sentences(self, flaws: Sequence[tuple[str, str]], drawn: int) -> Iterator[tuple[str, str]]:
        for kind in dict.fromkeys(kind for kind, _ in flaws):
            told = [text for of, text in flaws if of == kind]
            more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
            counted = f"{self.name}: {len(told)} of {drawn} rows {self.what[kind]}"
            yield kind, f"{counted}: {'; '.join(told[:NAMED])}{more}"
