"""The columns that a dataset reads are found by their usual names or by those that a user gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ecoflap.core.errors import DataError, nearest


@dataclass(frozen=True)
class WantedColumns:
    """Says which columns of a table are read.

    :param usual: The names that the column of each thing may have.
    :param optional: The things that may have no column.
    :param named: The columns that a user names, by thing; such a column has to be there.
    """

    usual: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...]
    named: Mapping[str, str]

    def find(self, there: Sequence[str], where: str) -> dict[str, str]:
        """Find the column of each thing that is read.

        :param there: Names of the columns there are.
        :param where: The table's place, for messages.
        :raises DataError: With every thing that has no column, the nearest name and what to do.
        """
        found: dict[str, str] = {}
        problems = []
        for what, usual in self.usual.items():
            names = (self.named[what],) if what in self.named else usual
            present = [name for name in names if name in there]
            if present:
                found[what] = present[0]
            elif what in self.named or what not in self.optional:
                problems.append(self._missing(what, names, there, where))
        if problems:
            raise DataError(*problems)
        return found

    def _missing(self, what: str, names: Sequence[str], there: Sequence[str], where: str) -> str:
        near = next(filter(None, (nearest(name, there) for name in names)), "")
        hint = "" if what in self.named else f" Name the right one in columns: {{{what}: …}}."
        known = ", ".join(map(str, there))
        moves = what == "image" and any("video" in str(name).lower() for name in there)
        videos = " Videos are not read: take frames out of them, as images." if moves else ""
        return f"{where} has no column {' or '.join(map(repr, names))}.{near} Known: {known}.{videos or hint}"
