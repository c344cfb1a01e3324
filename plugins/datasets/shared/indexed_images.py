"""What datasets of images share: which rows are drawn, in which order, and what becomes of those that are no good."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from torch import nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.plugins.datasets.shared.flaws import SKIPPABLE, Flaw, Flaws, Skippable
from ecoflap.plugins.datasets.shared.image_files import read_image
from ecoflap.plugins.datasets.shared.image_tables import INDEXES, Row, Table, index_of, index_table, missing_path
from ecoflap.plugins.datasets.shared.layouts import Entries, recognised
from ecoflap.plugins.datasets.shared.stored_tables import hub_table, is_stored, stored_table

TEXTS = ("answer", "raw", "caption")
"""Under which of its keys an object in a list of texts has its text: VQAv2's answers, Karpathy's sentences, COCO's."""

IMAGE = ("image", "file_name")
"""What the column of images may be called; the latter is the Hugging Face image folder's name."""


@dataclass(frozen=True)
class IndexedImages(ABC):
    """Images, and what belongs to them, by an index, by a published file, or from a data set of the hub.

    An index is a ``.jsonl`` file (an object a line), a ``.json`` file (a list of objects) or a ``.csv`` file with a
    header. Its image files are named relative to its own folder, or to ``images``; an absolute path is taken as it is,
    and one with ``..`` leads where it says. An index can so name any file that its reader may read, as an image alone.

    The fields are told where they are read, in each dataset.

    :param notes: What was passed over in the last pass, as sentences that count and name it, for the run's log.
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
    portion: tuple[float, float] = (0.0, 1.0)
    skip: bool | tuple[Skippable, ...] = False
    notes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    name: ClassVar[str]
    reads: ClassVar[Mapping[str, tuple[str, ...]]]
    """What is read, with the names its column may have."""
    optional: ClassVar[tuple[str, ...]] = ()
    empty: ClassVar[str] = "have no text"

    def __call__(self, adapter: Adapter, model: nn.Module) -> Iterator[Sample]:
        wrong = [*self._wrong_parameters()]
        if wrong:
            raise DataError(*wrong)
        self.notes.clear()
        yield from self._walk(partial(self._sample, _Decoded()))

    def problems(self, anatomy: Anatomy | None = None, recipe: Any = None) -> Iterator[str]:
        """What is wrong with parameters, index and names of files; said before a model is loaded or an image opened."""
        wrong = [*self._wrong_parameters()]
        yield from wrong
        if wrong or self.dataset is not None:
            return
        try:
            for _ in self._walk(self._without_image):
                pass
        except DataError as error:
            yield from error.problems

    def files(self) -> Iterator[Path]:
        """What is yielded depends on, so that a change of any is seen: indexes, and the images looked at.

        A folder stands for the names in it. What is missing, and all that a broken index would name, is left out.
        """
        found = (path for path in (*self._indexes(), *self._images()) if path.exists())
        return iter(dict.fromkeys(found))

    def _indexes(self) -> Iterator[Path]:
        path = self.path if self.dataset is None else Path(self.dataset)
        if path is None or not path.is_dir():
            yield from filter(None, [path])
        elif self.dataset is not None or is_stored(path):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        else:
            indexes = [path / name for name in INDEXES if (path / name).is_file()]
            yield from indexes or [path]

    def _images(self) -> Sequence[Path]:
        """Of the rows that are looked at; which those are may depend on which images can be read."""
        images: list[Path] = []
        opens = self.samples is not None and self._flaws().passes("unreadable")
        use = partial(self._sample, _Decoded()) if opens else self._without_image

        def look(row: Row) -> Sample:
            if isinstance(row.image, Path):
                images.append(row.image)
            return use(row)

        if self.dataset is None and not any(self._wrong_parameters()):
            with suppress(DataError):
                for _ in self._walk(look):
                    pass
        return images

    @abstractmethod
    def _rest(self, row: Row) -> Sample:
        """All of a sample but its image.

        :raises Flaw: Where the row has not what it takes.
        """

    def _without_index(self, folder: Path) -> Table:
        known = ", ".join(INDEXES)
        raise DataError(f"the folder {folder} holds no index. Known: {known}. Any other name is given as path itself.")

    def _published(self, document: Any, file: Path) -> Entries:
        """The rows of a JSON file that is no list."""
        recognised(document, file, ())
        raise AssertionError("unreachable")

    def _wrong_parameters(self) -> Iterator[str]:
        if (self.path is None) == (self.dataset is None):
            yield f"{self.name}: either path or dataset is needed, and not both."
        if find_spec("PIL") is None:
            yield f"{self.name}: reading images needs Pillow: pip install 'ecoflap[images]'."
        stored = self.path is not None and is_stored(self.path)
        if (stored or self.dataset is not None) and find_spec("datasets") is None:
            given = f"{self.path}" if stored else "dataset"
            yield f"{self.name}: {given} needs the datasets library: pip install 'ecoflap[datasets]'."
        if self.images is not None and not self.images.is_dir():
            file = f"{self.images} is a file; the folder of the image files is meant."
            yield f"{self.name}: images: {file if self.images.exists() else missing_path(self.images)}"
        if self.samples is not None and self.samples < 1:
            yield f"{self.name}: samples is {self.samples}; at least 1 is needed, or null for all there are."
        if not 0 <= self.portion[0] < self.portion[1] <= 1:
            yield f"{self.name}: portion is {list(self.portion)}; two rising numbers from 0 to 1 are needed."
        for what in self.columns or ():
            if what not in self.reads:
                known = f"{nearest(what, self.reads)} Known: {', '.join(self.reads)}."
                yield f"{self.name}: columns names {what!r}, which is not read.{known}"

    def _table(self) -> Table:
        try:
            if self.dataset is not None:
                return hub_table(self.dataset, self.config, self.split, self.images, self._columns)
            assert self.path is not None  # _wrong_parameters() has seen to it
            if not self.path.exists():
                raise missing_path(self.path)
            if is_stored(self.path):
                return stored_table(self.path, self.config, self.split, self.images, self._columns)
            index = index_of(self.path) if self.path.is_dir() else self.path
            if index is None:
                return self._without_index(self.path)
            return index_table(index, self.images, self._columns, self._published)
        except DataError as error:
            raise DataError(*(f"{self.name}: {problem}" for problem in error.problems)) from error

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        named, found, problems = self.columns or {}, {}, []
        for what, usual in self.reads.items():
            names = (named[what],) if what in named else usual
            present = [name for name in names if name in there]
            if present:
                found[what] = present[0]
            elif what in named or what not in self.optional:
                hint = "" if what in named else f" Name the right one in columns: {{{what}: …}}."
                near = next(filter(None, (nearest(name, there) for name in names)), "")
                missing = " or ".join(map(repr, names))
                known = ", ".join(map(str, there))
                problems.append(f"{where} has no column {missing}.{near} Known: {known}.{hint}")
        if problems:
            raise DataError(*problems)
        return found

    def _numbers(self, table: Table) -> list[int]:
        """Of the rows in the portion, in the order they are drawn in."""
        # read as exact decimals, so that 0.7 ends one portion where it begins the next
        start, end = (int(Fraction(str(share)) * table.size) for share in self.portion)
        numbers = list(range(table.size))
        if end - start < table.size:
            # by chance, for the first rows may all be of one class; by the same chance for every portion
            Random(0).shuffle(numbers)
            numbers = sorted(numbers[start:end])
        if len(numbers) < (self.samples or 1):
            share = f"portion {list(self.portion)} of " if len(numbers) < table.size else ""
            raise DataError(
                f"{self.name}: {self.samples or 'all'} samples are asked for, and {share}{table.where} has "
                f"{len(numbers)}. {_way_out(len(numbers))}"
            )
        if self.order == "random":
            Random(self.seed).shuffle(numbers)
        return numbers

    def _walk(self, use: Callable[[Row], Sample]) -> Iterator[Sample]:
        """Samples until there are enough. After a row that is an error nothing is yielded, but all others are named."""
        table = self._table()
        numbers, flaws = self._numbers(table), self._flaws()
        wanted, good = self.samples or len(numbers), 0
        for number in numbers:
            if good + len(flaws.errors) == wanted:
                break
            try:
                sample = use(table.row(number))
            except Flaw as flaw:
                flaws.add(flaw)
                continue
            good += 1
            if not flaws.errors:
                yield sample
        self._settle(flaws, good, len(numbers), table.hint)

    def _flaws(self) -> Flaws:
        what = {
            "missing": "name an image file that is not there",
            "unreadable": "have an image that cannot be read",
            "empty": self.empty,
            "malformed": "hold what does not belong there",
        }
        skip = self.skip if isinstance(self.skip, tuple) else SKIPPABLE if self.skip else ()
        return Flaws(self.name, what, skip)

    def _settle(self, flaws: Flaws, good: int, available: int, hint: str) -> None:
        """Tell what was no good, as an error or, where enough was good, as notes."""
        drawn = good + len(flaws.errors) + len(flaws.skipped)
        if flaws.errors:
            raise DataError(*flaws.as_errors(drawn, hint))
        self.notes[:] = flaws.as_notes(drawn)
        if good < (self.samples or 1):
            raise DataError(
                f"{self.name}: {self.samples or 'all'} samples are asked for, and {good} of {available} rows can be "
                f"used. {_way_out(good)}",
                *self.notes,
            )

    def _without_image(self, row: Row) -> Sample:
        """What costs little: that the image's file is there, and all that is no image."""
        if row.image is None:
            raise Flaw("missing", f"{row.where} (it names none)")
        if isinstance(row.image, Path) and not os.path.isfile(row.image):
            raise Flaw("missing", row.named)
        if not isinstance(row.image, Path | bytes) and not hasattr(row.image, "getexif"):
            raise Flaw("malformed", f"{row.where} (the image is {row.image!r:.40})")
        own, image, kind = _name_in(row, "id"), _name_in(row, "image_id"), _name_in(row, "kind")
        return replace(
            self._rest(row), id=image if own is None else own, image_id=image, kind=None if kind is None else str(kind)
        )

    def _sample(self, decoded: "_Decoded", row: Row) -> Sample:
        rest = self._without_image(row)
        try:
            return replace(rest, image=decoded.of(row.image))
        except DataError as error:
            raise Flaw("unreadable", f"{row.named}: {error}") from None


class _Decoded:
    """The image read last: rows about one image, such as VQA's questions, mostly follow each other."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._image: Any = None

    def of(self, source: Any) -> Any:
        if not isinstance(source, Path) or source != self._file:
            self._image = read_image(source)
            self._file = source if isinstance(source, Path) else None
        return self._image


def _way_out(there: int) -> str:
    return f"Set samples: {there}, or null for all there are; or give more." if there else "Give more."


def _name_in(row: Row, what: str) -> str | int | None:
    name = row.values.get(what)
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise Flaw("malformed", f"{row.where} (its {what} is {name!r:.40})")
    return name


def words_of(row: Row, what: str, blanks: bool = False) -> list[str]:
    """The texts in a column that holds one or a list of them, or of objects such as ``{"answer": text}``.

    :param blanks: Keep a blank text of an object, for it is one of ten answers; alone they are none.
    """
    found = []
    for item in _items(row.values.get(what)):
        word = item.strip() if isinstance(item, str) else _word(item, row, what)
        if word or (blanks and isinstance(item, Mapping)):
            found.append(word)
    return found if any(found) else []


def _word(item: Any, row: Row, what: str) -> str:
    """Of what is no text: of an object its own, of a number its digits, of nothing a blank."""
    text = item.get(_text_key(item), item) if isinstance(item, Mapping) else item
    if text is not None and (isinstance(text, bool) or not isinstance(text, str | int)):
        raise Flaw("malformed", f"{row.where} (its {what} is {item!r:.40})")
    return "" if text is None else str(text).strip()


def _items(value: Any) -> Sequence[Any]:
    """Of a list; also of an object of lists, which is how the ``datasets`` library keeps a list of objects."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Mapping) and isinstance(value.get(_text_key(value)), list | tuple):
        return [{"answer": text} for text in value[_text_key(value)]]
    return [value]


def _text_key(item: Mapping[str, Any]) -> str:
    return next((key for key in TEXTS if key in item), "")
