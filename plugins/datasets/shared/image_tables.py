"""Tables of images and what belongs to them are read from an index, a published file or a folder of images."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, first_of
from ecoflap.plugins.datasets.shared.image_files import SUFFIXES
from ecoflap.plugins.datasets.shared.published_files import Entries, Entry, read_json
from ecoflap.plugins.datasets.shared.text_files import is_of_lines, json_lines, json_object, read_text

INDEXES = ("index.jsonl", "index.json", "index.csv", "metadata.jsonl", "metadata.csv")
"""Names of the files that are taken for a folder's index."""
KINDS = (".jsonl", ".json", ".csv")
"""Endings of the files that can be an index."""

Columns = Callable[[Sequence[str], str], Mapping[str, str]]
"""Finds the column of each thing that is read among the columns there are; the second argument is their place, for
messages. Raises :class:`DataError`."""

Published = Callable[[Any, Path], Entries]
"""Gives the rows of a JSON file that is no list, by what it holds. Raises :class:`DataError` for an unknown layout."""


@dataclass(frozen=True)
class Row:
    """Holds one image and what belongs to it, or texts that belong together.

    :param number: The row's number in its table, from 0.
    :param where: The row's place, for messages: ``index.jsonl:7``.
    :param image: A file, which may be missing; or its bytes, or a PIL image. None where the row names none.
    :param values: What the row holds, by what it is read as, such as ``text``, and not by the column's own name.
    :param folder: The folder that images are named relative to.
    """

    number: int
    where: str
    image: Any
    values: Mapping[str, Any]
    folder: Path = Path()

    def with_file(self, image: Any) -> str:
        """Name the row's place, with the file of one of its images."""
        return f"{self.where} ({image})" if isinstance(image, Path) else self.where

    def having(self, **values: Any) -> "Row":
        """Give the row with other values."""
        return replace(self, values={**self.values, **values})


@dataclass(frozen=True)
class Table:
    """Holds rows that are made when they are asked for, so that no image is held.

    :param where: The table's place, for messages.
    :param size: How many rows there are.
    :param row: Gives a row by its number.
    :param values: Gives what every row has of one thing that is read, such as ``label``.
    :param classes: Names of the classes, where labels are numbers of named classes.
    :param labelled: Whether rows have a label.
    :param hint: What to do where image files are missing.
    :param columns: Names of all columns, read or not; none where the rows are files of a folder.
    """

    where: str
    size: int
    row: Callable[[int], Row]
    values: Callable[[str], Iterable[Any]]
    classes: Sequence[str] | None = None
    labelled: bool = False
    hint: str = ""
    columns: Sequence[str] = ()


def index_of(folder: Path) -> Path | None:
    """Find the index file of a folder; None where there is none.

    :raises DataError: Where there are several.
    """
    found = [name for name in INDEXES if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"the folder {folder} holds several indexes: {', '.join(found)}. Name one of them in path.")
    return folder / found[0] if found else None


def index_table(file: Path, images: Path | None, columns: Columns, published: Published) -> Table:
    """Read an index or a published file.

    :param images: The folder that images are named relative to; None for the file's own.
    :param columns: Finds the columns that are read.
    :param published: Reads a JSON file that is no list.
    :raises DataError: Where the file cannot be read, or holds no rows.
    """
    if file.suffix.lower() not in KINDS:
        known = f"an index ({', '.join(KINDS)}), or a folder"
        raise DataError(f"{file} is of a kind that is not read. Known: {known}.")
    entries = _entries(file, published)
    if not entries.size:
        raise DataError(f"{file} holds no rows.")
    column_of = columns(entries.columns, str(file))
    folder = file.parent if images is None else images

    def row(number: int) -> Row:
        place, entry = entries.at(number)
        return row_from(number, f"{file.name}{place}", entry, column_of, folder)

    def values(what: str) -> Iterator[Any]:
        return (entries.at(number)[1].get(column_of[what]) for number in range(entries.size))

    labelled = "label" in column_of
    return Table(str(file), entries.size, row, values, labelled=labelled, hint=entries.hint, columns=entries.columns)


def folder_table(folder: Path, labels: bool) -> Table:
    """List the images of a folder, or where it holds none itself, those of its subfolders.

    Files and folders whose names begin with a dot are passed over.

    :param labels: Whether subfolders are classes, numbered in the order of their names. A single one is none.
    :raises DataError: Where there is no image, or a class without one.
    """
    files, label_of = _images_of(folder), {}
    if not files:
        subfolders = [Path(entry) for entry in _visible(folder) if entry.is_dir()]
        inside = {subfolder: _images_of(subfolder) for subfolder in sorted(subfolders, key=lambda found: found.name)}
        files = [file for found in inside.values() for file in found]
        if labels and files and len(inside) > 1:
            label_of = _classes(folder, inside)
    if not files:
        raise DataError(f"the folder {folder} and its subfolders hold no image. Known: {', '.join(SUFFIXES)}.")

    def row(number: int) -> Row:
        file = files[number]
        values = {"label": label_of[file.parent]} if label_of else {}
        return Row(number, file.name, file, {"image_id": file.relative_to(folder).as_posix(), **values})

    def values(what: str) -> Iterator[Any]:
        return (row(number).values.get(what) for number in range(len(files)))

    classes = [subfolder.name for subfolder in label_of] if label_of else None
    return Table(str(folder), len(files), row, values, classes, labelled=bool(label_of))


def row_from(number: int, where: str, entry: Entry, column_of: Mapping[str, str], folder: Path) -> Row:
    """Make a row of what a table's columns hold.

    :param where: The row's place, for messages.
    :param entry: What the row holds, by column.
    :param column_of: The column of each thing that is read.
    :param folder: The folder that images are named relative to.
    """
    values = {what: entry.get(column) for what, column in column_of.items()}
    image, name = image_at(values.pop("image", None), folder)  # of a table of texts there is none
    if name is not None and values.get("image_id") is None:
        values["image_id"] = name
    return Row(number, where, image, values, folder)


def image_at(image: Any, folder: Path) -> tuple[Any, str | None]:
    """Give the image that a cell stands for, as a :class:`Row` has it, and the name that it has there; None for none.

    What is there as bytes has no name: samples of one image are known by its pixels then.

    :param image: A name, or a tuple of names of which the first whose file is there is meant; an object with its bytes
        or path; or what else the cell holds.
    :param folder: The folder that images are named relative to.
    """
    name = None
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        # Of the path of embedded bytes ``datasets`` keeps the base name alone, which images of several folders share.
        image = image.get("bytes") or image.get("path")
    if isinstance(image, tuple):
        image = next((one for one in image if os.path.isfile(folder / one)), next(iter(image), None))
    if isinstance(image, str):
        name = image
        image = folder / image if image.strip() else None
    return image, name


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """List what a folder holds, without names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error}.") from error


def _images_of(folder: Path) -> list[Path]:
    names = [entry.name for entry in _visible(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    return [folder / name for name in sorted(names)]


def _classes(folder: Path, inside: Mapping[Path, Sequence[Path]]) -> dict[Path, int]:
    """Number subfolders as classes, each of which has to hold an image."""
    empty = [subfolder.name for subfolder, files in inside.items() if not files]
    if empty:
        raise DataError(
            f"the subfolders of {folder} are taken for classes, and {len(empty)} of them hold no image: "
            f"{first_of(empty, 5)}. Take them away, or set labels: false."
        )
    return {subfolder: number for number, subfolder in enumerate(inside)}


def _entries(file: Path, published: Published) -> Entries:
    """Read the rows of a file by its ending; some are published as ``.json`` with an object a line."""
    if file.suffix.lower() == ".json" and not is_of_lines(file):
        document = read_json(file)
        return _list_entries(document, file) if isinstance(document, list) else published(document, file)
    lines = _csv_rows(file) if file.suffix.lower() == ".csv" else json_lines(file)
    rows = [(f":{number}", entry) for number, entry in lines]
    return Entries(_columns_of(entry for _, entry in rows), len(rows), rows.__getitem__)


def _list_entries(rows: Sequence[Any], file: Path) -> Entries:
    for number, row in enumerate(rows):
        json_object(row, f"{file}[{number}]")
    return Entries(_columns_of(rows), len(rows), lambda number: (f"[{number}]", rows[number]))


def _columns_of(entries: Iterable[Entry]) -> list[str]:
    """Name the columns of all rows, because JSON objects need not be alike."""
    return list(dict.fromkeys(key for entry in entries for key in entry))


def _csv_rows(file: Path) -> Iterator[tuple[int, Entry]]:
    """Yield each row of a CSV file with the number of its line."""
    reader = csv.DictReader(StringIO(read_text(file), newline=""), strict=True)
    try:
        twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
        if twice:
            raise DataError(f"{file} has several columns of the name {twice[0]!r}.")
        for entry in reader:
            if None in entry:
                raise DataError(
                    f"{file}:{reader.line_num} has more cells than the first line has columns. "
                    'A cell with a comma in it is written in "quotes".'
                )
            yield reader.line_num, entry
    except csv.Error as error:
        way_out = " A .jsonl file has no such limit." if "field limit" in str(error) else ""
        raise DataError(f"{file}:{reader.reader.line_num} is not CSV: {error}.{way_out}") from error
