"""Datasets of images share which rows they draw, in which order, and what becomes of rows that cannot be used."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Note, ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_files import LastImage
from ecoflap.plugins.datasets.shared.image_tables import INDEXES, Row, Table, index_of, index_table
from ecoflap.plugins.datasets.shared.portions import Portion, portion_problem, rows_in
from ecoflap.plugins.datasets.shared.published_files import Entries, recognised
from ecoflap.plugins.datasets.shared.row_texts import name_in
from ecoflap.plugins.datasets.shared.stored_tables import Stored, is_stored, library_problem, stored_table
from ecoflap.plugins.datasets.shared.text_files import missing_path, named_problems
from ecoflap.plugins.datasets.shared.unusable_rows import SKIPPABLE, RowTally, Skippable, UnusableRow
from ecoflap.plugins.datasets.shared.wanted_columns import WantedColumns

IMAGE = ("image", "file_name")
"""What the column of images may be called; the latter is the name of the Hugging Face image folder."""

MakeSample = Callable[[Row], Sample]
"""Makes a sample of a row. Raises :class:`UnusableRow`."""


@dataclass(frozen=True)
class IndexedImages(ABC):
    """Yield images, and what belongs to them, by an index, by a published file, or from a data set of the hub.

    An index is a ``.jsonl`` file (an object a line), a ``.json`` file (a list of objects) or a ``.csv`` file with a
    header. Its image files are named relative to its own folder, or to ``images``; an absolute path is taken as it is,
    and one with ``..`` leads where it says. An index can so name any file that its reader may read, as an image alone.

    Each dataset that inherits from this one says what its fields mean.

    :cvar name: What the dataset is called in messages.
    :cvar reads: By what is read, the names that its column may have.
    :cvar optional: What may have no column.
    :cvar empty: What a row does that lacks what the dataset reads, for messages.
    """

    path: Path | None = None
    images: Path | None = None
    dataset: str | None = None
    config: str | None = None
    split: str = "train"
    columns: Mapping[str, str] | None = None
    samples: int | None = 128
    order: Literal["random", "first"] = "random"
    seed: int = 0
    portion: Portion = (0.0, 1.0)
    skip: bool | tuple[Skippable, ...] = False

    name: ClassVar[str]
    reads: ClassVar[Mapping[str, tuple[str, ...]]]
    optional: ClassVar[tuple[str, ...]] = ()
    empty: ClassVar[str] = "have no text"

    def __call__(self, adapter: Adapter, model: nn.Module, note: Note) -> Iterator[Sample]:
        self._refuse_parameters()
        yield from self._walk(self._with_image(LastImage()), note)

    @property
    def fetches(self) -> bool:
        """Say whether the samples may come over a network."""
        return self.dataset is not None

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Say what is wrong with parameters, index and names of files. No image is opened, and nothing is fetched."""
        wrong = [*self._parameter_problems()]
        yield from wrong
        if wrong or self.fetches:
            return
        try:
            for _ in self._walk(self._without_image, ignore):
                pass
        except DataError as error:
            yield from error.problems

    def files(self) -> Iterator[Path]:
        """Name what the samples depend on, so that a change of any is seen: indexes, and the images looked at.

        A folder stands for the names in it. What is missing is left out, and all that a broken index would name.
        """
        found = (path for path in (*self._indexes(), *self._images()) if path.exists())
        return iter(dict.fromkeys(found))

    # --- what the files are

    def _indexes(self) -> Iterator[Path]:
        """Name the files that rows are read from."""
        path = self.path if self.dataset is None else Path(self.dataset)
        if path is None or not path.is_dir():
            yield from filter(None, [path])
        elif self.dataset is not None or is_stored(path):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        else:
            indexes = [path / name for name in INDEXES if (path / name).is_file()]
            yield from indexes or [path]

    def _images(self) -> Sequence[Path]:
        """Name the image files of the rows that are looked at, which may depend on which images can be read."""
        images: list[Path] = []
        opens = self.samples is not None and self._new_tally().skips("unreadable")
        make = self._with_image(LastImage()) if opens else self._without_image

        def look(row: Row) -> Sample:
            if isinstance(row.image, Path):
                images.append(row.image)
            return make(row)

        if self.dataset is None and not any(self._parameter_problems()):
            with suppress(DataError):
                for _ in self._walk(look, ignore):
                    pass
        return images

    # --- what each dataset adds

    @abstractmethod
    def _rest(self, row: Row) -> Sample:
        """Make all of a sample but its image.

        :raises UnusableRow: Where the row lacks what it takes.
        """

    def _without_index(self, folder: Path) -> Table:
        """Read a folder that holds no index."""
        known = ", ".join(INDEXES)
        raise DataError(f"the folder {folder} holds no index. Known: {known}. Any other name is given as path itself.")

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
        if find_spec("PIL") is None:
            yield "reading images needs Pillow: pip install 'ecoflap[images]'."
        stored = self.path is not None and is_stored(self.path)
        if stored or self.dataset is not None:
            yield from filter(None, [library_problem(f"{self.path}" if stored else "dataset")])
        if self.images is not None and not self.images.is_dir():
            file = f"{self.images} is a file; the folder of the image files is meant."
            yield f"images: {file if self.images.exists() else missing_path(self.images)}"
        if self.samples is not None and self.samples < 1:
            yield f"samples is {self.samples}; at least 1 is needed, or null for all there are."
        yield from filter(None, [portion_problem(self.portion)])
        for what in self.columns or ():
            if what not in self.reads:
                known = f"{nearest(what, self.reads)} Known: {', '.join(self.reads)}."
                yield f"columns names {what!r}, which is not read.{known}"

    # --- which rows are drawn

    def _table(self) -> Table:
        with named_problems(self.name):
            if self.dataset is not None:
                stored = Stored.of_hub(self.dataset, self.config, self.split)
                return stored_table(stored, self.images or Path.cwd(), self._columns)
            assert self.path is not None  # _wrong_parameters() has seen to it
            return self._table_of_path(self.path)

    def _table_of_path(self, path: Path) -> Table:
        if not path.exists():
            raise DataError(missing_path(path))
        if is_stored(path):
            folder = path.parent if path.is_file() else path
            stored = Stored(str(path), self.config, self.split, str(path))
            return stored_table(stored, self.images or folder, self._columns)
        index = index_of(path) if path.is_dir() else path
        if index is None:
            return self._without_index(path)
        return index_table(index, self.images, self._columns, self._published)

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        """Find the column of each thing that is read."""
        return WantedColumns(self.reads, self.optional, self.columns or {}).find(there, where)

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

    def _new_tally(self) -> RowTally:
        verbs = {
            "missing": "name an image file that is not there",
            "unreadable": "have an image that cannot be read",
            "empty": self.empty,
            "malformed": "hold what does not belong there",
        }
        skip = self.skip if isinstance(self.skip, tuple) else SKIPPABLE if self.skip else ()
        return RowTally(self.name, verbs, skip)

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

    # --- how a row becomes a sample

    def _without_image(self, row: Row) -> Sample:
        """Make a sample but for its image, of which only what costs little is seen to: that its file is there."""
        if row.image is None:
            raise UnusableRow("missing", f"{row.where} (it names none)")
        if isinstance(row.image, Path) and not os.path.isfile(row.image):
            raise UnusableRow("missing", row.named)
        if not isinstance(row.image, Path | bytes) and not hasattr(row.image, "getexif"):
            raise UnusableRow("malformed", f"{row.where} (the image is {row.image!r:.40})")
        own, image, kind = (name_in(row, what) for what in ("id", "image_id", "kind"))
        return replace(
            self._rest(row), id=image if own is None else own, image_id=image, kind=None if kind is None else str(kind)
        )

    def _with_image(self, images: LastImage) -> MakeSample:
        def make(row: Row) -> Sample:
            rest = self._without_image(row)
            try:
                return replace(rest, image=images.read(row.image))
            except DataError as error:
                raise UnusableRow("unreadable", f"{row.named}: {error}") from None

        return make
