"""Rows that a dataset cannot use are counted, the first of them named, and passed over only where that is asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Skippable: TypeAlias = Literal["missing", "unreadable", "empty"]
SKIPPABLE: tuple[Skippable, ...] = ("missing", "unreadable", "empty")
_NAMED = 5
"""How many rows of a kind a sentence names."""


class UnusableRow(Exception):
    """Says why a row cannot be used.

    :param kind: One of :data:`SKIPPABLE`, or ``malformed`` for what is never passed over.
    :param row: The row's place, with what is wrong there: ``index.jsonl:7 (no answer)``.
    """

    def __init__(self, kind: str, row: str) -> None:
        super().__init__(row)
        self.kind, self.row = kind, row


@dataclass
class RowTally:
    """Count the usable and the unusable rows of one pass over a table.

    Unusable rows are kept as texts, because an exception would hold on to its row's image.

    :param dataset: The dataset's name, for messages.
    :param verbs: By kind, what such rows do: ``name an image file that is not there``.
    :param skip: The kinds that are passed over.
    :param usable: How many rows could be used so far.
    :param refused: Kind and text of each row that is an error.
    :param skipped: Kind and text of each row that was passed over.
    """

    dataset: str
    verbs: Mapping[str, str]
    skip: Sequence[str]
    usable: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skips(self, kind: Skippable) -> bool:
        """Say whether rows of a kind are passed over."""
        return kind in self.skip

    def add(self, found: UnusableRow) -> None:
        """Count an unusable row."""
        (self.skipped if found.kind in self.skip else self.refused).append((found.kind, found.row))

    def errors(self, hint: str = "") -> Iterator[str]:
        """Give a sentence for each kind of row that is an error.

        :param hint: What else to do about missing files.
        """
        for kind, sentence in self._sentences(self.refused):
            way_out = f", or set skip: [{kind}] to pass over such rows" if kind in SKIPPABLE else ""
            more = f" {hint}" if hint and kind == "missing" else ""
            yield f"{self.dataset}: {sentence}. Mend them{way_out}.{more}"

    def notes(self) -> Iterator[str]:
        """Give a sentence for each kind of row that was passed over."""
        return (f"{sentence}. They were passed over." for _, sentence in self._sentences(self.skipped))

    def _sentences(self, rows: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        drawn = self.usable + len(self.refused) + len(self.skipped)
        for kind in dict.fromkeys(kind for kind, _ in rows):
            texts = [text for other, text in rows if other == kind]
            more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
            yield kind, f"{len(texts)} of {drawn} rows {self.verbs[kind]}: {'; '.join(texts[:_NAMED])}{more}"
