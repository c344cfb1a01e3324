"""Datasets of rows share where those are read from, which are drawn, and what is said of those that cannot be used."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_tables import INDEXES, Row, Table, index_of, index_table
from ecoflap.plugins.datasets.shared.portions import Portion, portion_problem, rows_in
from ecoflap.plugins.datasets.shared.published_files import Entries, recognised
from ecoflap.plugins.datasets.shared.stored_tables import (
    HubOrPath,
    Stored,
    files_of_dataset,
    is_stored,
    library_problem,
    missing_dataset,
    stored_table,
)
from ecoflap.plugins.datasets.shared.text_files import missing_path, named_problems
from ecoflap.plugins.datasets.shared.unusable_rows import RowTally, UnusableRow

MakeSample = Callable[[Row], Sample]
"""Makes a sample of a row. Raises :class:`UnusableRow`."""


@dataclass(frozen=True)
class IndexedRows(ABC):
    """Yield a sample of each row that is drawn from an index, from stored tables, or from a data set of the hub.

    An index is a ``.jsonl`` file (an object a line), a ``.json`` file (a list of objects) or a ``.csv`` file with a
    header, or a folder with one. Each dataset that inherits from this one says what its fields mean.

    :cvar name: What the dataset is called in messages.
    :cvar reads: By what is read, the names that its column may have.
    :cvar optional: What may have no column.
    """

    path: Path | None = None
    dataset: HubOrPath | None = None
    config: str | None = None
    split: str = "train"
    columns: Mapping[str, str] | None = None
    samples: int | None = 128
    order: Literal["random", "first"] = "random"
    seed: int = 0
    portion: Portion = (0.0, 1.0)

    name: ClassVar[str]
    reads: ClassVar[Mapping[str, tuple[str, ...]]]
    optional: ClassVar[tuple[str, ...]] = ()

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        self._refuse_parameters()
        yield from self._walk(self._whole(), note)

    @property
    def fetches(self) -> bool:
        """Say whether the samples may come over a network."""
        return isinstance(self.dataset, str)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is wrong with the parameters and the rows that are drawn. Nothing is fetched."""
        wrong = [*self._parameter_problems()]
        yield from wrong
        if wrong or self.fetches:
            return
        try:
            for _ in self._walk(self._at_a_glance, ignore):
                pass
        except DataError as error:
            yield from error.problems

    def files(self) -> Iterator[Path]:
        """Name every file that is read, so that a change of any is seen."""
        return (path for path in self._indexes() if path.exists())

    # --- what each dataset adds

    @abstractmethod
    def _at_a_glance(self, row: Row) -> Sample:
        """Make a sample of what costs little to read.

        :raises UnusableRow: Where the row lacks what it takes.
        """

    @abstractmethod
    def _new_tally(self) -> RowTally:
        """Say what unusable rows do, and which of them are passed over."""

    def _whole(self) -> MakeSample:
        """Give what makes whole samples; by default all of one is seen at a glance."""
        return self._at_a_glance

    def _published(self, document: Any, file: Path) -> Entries:
        """Read a JSON file that is no list. This dataset knows none, and says which other one does."""
        recognised(document, file, ())
        raise AssertionError("unreachable")  # of no layout, everything is refused

    # --- what is wrong with parameters

    def _refuse_parameters(self) -> None:
        wrong = [*self._parameter_problems()]
        if wrong:
            raise DataError(*wrong)

    def _parameter_problems(self) -> Iterator[str]:
        """Say what is wrong with the parameters, each sentence with the dataset's name."""
        return (f"{self.name}: {problem}" for problem in self._wrong_parameters())

    def _wrong_parameters(self) -> Iterator[str]:
        """Say what is wrong with the parameters."""
        if (self.path is None) == (self.dataset is None):
            yield "either path or dataset is needed, and not both."
        stored = self.path is not None and is_stored(self.path)
        if stored or self.dataset is not None:
            yield from filter(None, [library_problem(f"{self.path}" if stored else "dataset")])
        if self.samples is not None and self.samples < 1:
            yield f"samples is {self.samples}; at least 1 is needed, or null for all there are."
        yield from filter(None, [missing_dataset(self.dataset), portion_problem(self.portion)])
        for what in (what for what in self.columns or () if what not in self.reads):
            known = f"{nearest(what, self.reads)} Known: {', '.join(self.reads)}."
            yield f"columns names {what!r}, which is not read.{known}"

    # --- which rows are drawn

    def _indexes(self) -> Iterator[Path]:
        """Name the files that rows are read from."""
        path = self.path
        if path is None or not path.is_dir() or is_stored(path):
            yield from files_of_dataset(self.dataset if path is None else path)
        else:
            indexes = [path / name for name in INDEXES if (path / name).is_file()]
            yield from indexes or [path]

    def _table(self) -> Table:
        with named_problems(self.name):
            if self.dataset is not None:
                stored = Stored.of_hub(self.dataset, self.config, self.split)
                folder = _folder_of(self.dataset) if isinstance(self.dataset, Path) else Path.cwd()
                return stored_table(stored, self._images_beside(folder), self._columns)
            assert self.path is not None  # _wrong_parameters() has seen to it
            return self._table_of_path(self.path)

    def _table_of_path(self, path: Path) -> Table:
        if not path.exists():
            raise DataError(missing_path(path))
        folder = _folder_of(path)
        if is_stored(path):
            stored = Stored(str(path), self.config, self.split, str(path))
            return stored_table(stored, self._images_beside(folder), self._columns)
        index = index_of(path) if path.is_dir() else path
        if index is None:
            return self._without_index(path)
        return index_table(index, self._images_beside(folder), self._columns, self._published)

    def _without_index(self, folder: Path) -> Table:
        """Read a folder that holds no index."""
        known = ", ".join(INDEXES)
        raise DataError(f"the folder {folder} holds no index. Known: {known}. Any other name is given as path itself.")

    def _images_beside(self, folder: Path) -> Path:
        """Give the folder that rows name their images relative to, by default that of the tables."""
        return folder

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        """Find the column of each thing that is read."""
        return WantedColumns(self.reads, self.optional, self.columns or {}).find(there, where)

    def _overlooked(self, table: Table) -> Iterator[str]:
        """Say what is not read of a table, and may be meant to be; by default there is no such thing."""
        yield from ()

    def _numbers(self, table: Table) -> list[int]:
        """Give the numbers of the rows in the portion, in the order they are drawn in."""
        numbers = rows_in(self.portion, table.size)
        if len(numbers) < (self.samples or 1):
            share = f"portion {list(self.portion)} of " if len(numbers) < table.size else ""
            raise DataError(self._too_few(len(numbers), f"{share}{table.where} has {len(numbers)}"))
        if self.order == "random":
            Random(self.seed).shuffle(numbers)
        return numbers

    def _walk(self, make: MakeSample, note: Note) -> Iterator[Sample]:
        """Yield samples until there are enough, and note what was passed over.

        After a row that is an error nothing is yielded, but all others that are one are found and named.
        """
        table = self._table()
        for sentence in self._overlooked(table):
            note(sentence)
        numbers, tally = self._numbers(table), self._new_tally()
        wanted = self.samples or len(numbers)
        for number in numbers:
            if tally.usable + len(tally.refused) == wanted:
                break
            try:
                sample = make(table.row(number))
            except UnusableRow as found:
                tally.add(found)
                continue
            tally.usable += 1
            if not tally.refused:
                yield sample
        self._settle(tally, len(numbers), table.hint)
        for sentence in tally.notes():
            note(sentence)

    def _settle(self, tally: RowTally, available: int, hint: str) -> None:
        """Refuse rows that are errors, and a pass that found too few usable ones."""
        if tally.refused:
            raise DataError(*tally.errors(hint))
        if tally.usable < (self.samples or 1):
            found = f"{tally.usable} of {available} rows can be used"
            passed_over = (f"{self.name}: {sentence}" for sentence in tally.notes())
            raise DataError(self._too_few(tally.usable, found), *passed_over)

    def _too_few(self, there: int, found: str) -> str:
        """Say that more samples are asked for than there are.

        :param found: What there is, for the message.
        """
        way_out = f"Set samples: {there}, or null for all there are; or give more." if there else "Give more."
        return f"{self.name}: {self.samples or 'all'} samples are asked for, and {found}. {way_out}"


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


def _folder_of(path: Path) -> Path:
    return path.parent if path.is_file() else path
