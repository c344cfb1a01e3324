"""Where images and what belongs to them are written down: an index file, a folder of images, a data set of the hub."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.image_files import SUFFIXES

INDEXES = ("index.jsonl", "index.json", "index.csv", "metadata.jsonl", "metadata.csv")
KINDS = (".jsonl", ".json", ".csv")

Columns = Callable[[Sequence[str], str], Mapping[str, str]]
"""From the columns there are, and where, to the column of each thing that is read. Raises :class:`DataError`."""


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


@dataclass(frozen=True)
class Table:
    """Rows that are made when asked for, so that no image is held.

    :param where: For messages.
    """

    where: str
    size: int
    row: Callable[[int], Row]


def index_of(folder: Path) -> Path | None:
    """The index file of a folder; None where there is none.

    :raises DataError: Where there are several.
    """
    found = [name for name in INDEXES if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"the folder {folder} holds several indexes: {', '.join(found)}. Name one of them in path.")
    return folder / found[0] if found else None


def index_table(file: Path, images: Path | None, columns: Columns) -> Table:
    """:param images: The folder that images are named relative to; None for the index file's own."""
    if file.suffix.lower() not in KINDS:
        known = f"an index ({', '.join(KINDS)}), or a folder"
        raise DataError(f"{file} is of a kind that is not read. Known: {known}.")
    entries = list(_entries(file))
    if not entries:
        raise DataError(f"{file} holds no rows.")
    column_of = columns(list(dict.fromkeys(key for _, entry in entries for key in entry)), str(file))
    folder = file.parent if images is None else images

    def row(number: int) -> Row:
        place, entry = entries[number]
        return _row(number, f"{file.name}{place}", entry, column_of, folder)

    return Table(str(file), len(entries), row)


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
        return Row(number, file.name, file, values)

    return Table(str(folder), len(files), row)


def hub_table(name: str, config: str | None, split: str, images: Path | None, columns: Columns) -> Table:
    """A data set read by the ``datasets`` library, images left as the bytes they are stored as."""
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetsError

    where = f"dataset {name!r}"
    try:
        table = load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:  # a missing network included
        raise DataError(f"{where} cannot be loaded: {error}") from error
    if not len(table):
        raise DataError(f"{where} holds no rows.")
    column_of = columns(table.column_names, where)
    table = table.select_columns(list(dict.fromkeys(column_of.values())))
    for column, feature in table.features.items():
        if isinstance(feature, Image):
            # its own decoding ends at the first broken image, and does not say which
            table = table.cast_column(column, Image(decode=False))
    folder = Path.cwd() if images is None else images

    def row(number: int) -> Row:
        return _row(number, f"{where}, row {number}", table[number], column_of, folder)

    return Table(where, len(table), row)


def _row(number: int, where: str, entry: Mapping[str, Any], column_of: Mapping[str, str], folder: Path) -> Row:
    values = {what: entry.get(column) for what, column in column_of.items()}
    image = values.pop("image")
    if isinstance(image, Mapping) and ("bytes" in image or "path" in image):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
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


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row, with its place in the file."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    read = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows}[file.suffix.lower()]
    return read(text, file)


def _json_lines(text: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside a string, at U+2028
        if not line.strip():
            continue
        try:
            yield f":{number}", _object(json.loads(line), f"{file}:{number}")
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {error}. One object a line is expected.") from error


def _json_list(text: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}. Objects one a line belong in a .jsonl file.") from error
    if not isinstance(entries, list):
        raise DataError(f"{file} is not a JSON list. A list of objects is expected, one for each image.")
    for number, entry in enumerate(entries):
        yield f"[{number}]", _object(entry, f"{file}[{number}]")


def _object(entry: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not a JSON object.")
    return entry


def _csv_rows(text: str, file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
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
