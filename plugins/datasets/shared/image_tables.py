"""Where images and what belongs to them are written down: an index file, a published file, a folder of images."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_files import SUFFIXES
from ecoflap.plugins.datasets.shared.layouts import Entries, Entry, read_json

INDEXES = ("index.jsonl", "index.json", "index.csv", "metadata.jsonl", "metadata.csv")
KINDS = (".jsonl", ".json", ".csv")

Columns = Callable[[Sequence[str], str], Mapping[str, str]]
"""From the columns there are, and where, to the column of each thing that is read. Raises :class:`DataError`."""

Published = Callable[[Any, Path], Entries]
"""From the JSON of a file that is no list. Raises :class:`DataError` for a layout that is not read."""


@dataclass(frozen=True)
class Row:
    """One image and what belongs to it.

    :param number: Of the row in its table, from 0.
    :param where: For messages: ``index.jsonl:7``.
    :param image: A file, which may be missing; its bytes; a PIL image; None where the row names none.
    :param values: By what is read, such as ``text``; not by the column's own name.
    """

    number: int
    where: str
    image: Any
    values: Mapping[str, Any]

    @property
    def named(self) -> str:
        """With its image's file."""
        return f"{self.where} ({self.image})" if isinstance(self.image, Path) else self.where

    def having(self, **values: Any) -> "Row":
        """With other values."""
        return replace(self, values={**self.values, **values})


@dataclass(frozen=True)
class Table:
    """Rows that are made when asked for, so that no image is held.

    :param where: For messages.
    :param values: Those of one thing that is read, such as ``label``, in every row.
    :param classes: Their names, where labels are numbers of named classes.
    :param labelled: Whether rows have a label.
    :param hint: What to do where image files are missing.
    """

    where: str
    size: int
    row: Callable[[int], Row]
    values: Callable[[str], Iterable[Any]]
    classes: Sequence[str] | None = None
    labelled: bool = False
    hint: str = ""


def index_of(folder: Path) -> Path | None:
    """The index file of a folder; None where there is none.

    :raises DataError: Where there are several.
    """
    found = [name for name in INDEXES if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"the folder {folder} holds several indexes: {', '.join(found)}. Name one of them in path.")
    return folder / found[0] if found else None


def index_table(file: Path, images: Path | None, columns: Columns, published: Published) -> Table:
    """:param images: The folder that images are named relative to; None for the index file's own."""
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

    return Table(str(file), entries.size, row, values, labelled="label" in column_of, hint=entries.hint)


def folder_table(folder: Path, labels: bool) -> Table:
    """The images of a folder; where it holds none itself, those of its subfolders, numbered as classes if ``labels``.

    Names that begin with a dot are passed over.
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
    """A row of a table with columns."""
    values = {what: entry.get(column) for what, column in column_of.items()}
    image = values.pop("image")
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        if values.get("image_id") is None:
            values["image_id"] = image.get("path")
        image = image.get("bytes") or image.get("path")
    if isinstance(image, tuple):
        image = next((name for name in image if os.path.isfile(folder / name)), next(iter(image), None))
    if isinstance(image, str):
        if values.get("image_id") is None:
            values["image_id"] = image
        image = folder / image if image.strip() else None
    return Row(number, where, image, values)


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error}.") from error


def _images_of(folder: Path) -> list[Path]:
    names = [entry.name for entry in _visible(folder) if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    return [folder / name for name in sorted(names)]


def _classes(folder: Path, inside: Mapping[Path, Sequence[Path]]) -> dict[Path, int]:
    empty = [subfolder.name for subfolder, files in inside.items() if not files]
    if empty:
        raise DataError(
            f"the subfolders of {folder} are taken for classes, and {len(empty)} of them hold no image: "
            f"{', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}. Take them away, or set labels: false."
        )
    return {subfolder: number for number, subfolder in enumerate(inside)}


def _entries(file: Path, published: Published) -> Entries:
    if file.suffix.lower() == ".json":
        document = read_json(file)
        return _list_entries(document, file) if isinstance(document, list) else published(document, file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    rows = list((_csv_rows if file.suffix.lower() == ".csv" else _json_lines)(text, file))
    return Entries(_columns_of(entry for _, entry in rows), len(rows), rows.__getitem__)


def _list_entries(rows: Sequence[Any], file: Path) -> Entries:
    for number, row in enumerate(rows):
        _object(row, f"{file}[{number}]")
    return Entries(_columns_of(rows), len(rows), lambda number: (f"[{number}]", rows[number]))


def _columns_of(entries: Iterable[Entry]) -> list[str]:
    """Of all rows, as JSON objects need not be alike."""
    return list(dict.fromkeys(key for entry in entries for key in entry))


def _json_lines(text: str, file: Path) -> Iterator[tuple[str, Entry]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside a string, at U+2028
        if not line.strip():
            continue
        try:
            yield f":{number}", _object(json.loads(line), f"{file}:{number}")
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {error}. One object a line is expected.") from error


def _object(entry: Any, where: str) -> Entry:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not a JSON object.")
    return entry


def _csv_rows(text: str, file: Path) -> Iterator[tuple[str, Entry]]:
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
        if twice:
            raise DataError(f"{file} has several columns of the name {twice[0]!r}.")
        for entry in reader:
            if None in entry:
                raise DataError(
                    f"{file}:{reader.line_num} has more cells than the first line has columns. "
                    'A cell with a comma in it is written in "quotes".'
                )
            yield f":{reader.line_num}", entry
    except csv.Error as error:
        raise DataError(f"{file}:{reader.reader.line_num} is not CSV: {error}.") from error


def missing_path(path: Path) -> DataError:
    """With the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return DataError(f"{path} does not exist.{nearest(path.name, beside)}")
