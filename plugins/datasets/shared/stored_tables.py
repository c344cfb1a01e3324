"""Data sets of the hub, parquet files and saved folders are read by the ``datasets`` library."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import AfterValidator

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_tables import Columns, Row, Table, row_from
from ecoflap.plugins.datasets.shared.text_files import missing_path

SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` writes, of one split or of several."""
BEGIN_OF_PATHS = ("/", "./", "../", "~")
"""What tells a path from a name at the hub, both of which may have a slash in the middle."""


def _as_path(name: Path | str) -> Path | str:
    return Path(name) if isinstance(name, str) and (name in (".", "..") or name.startswith(BEGIN_OF_PATHS)) else name


HubOrPath: TypeAlias = Annotated[Path | str, AfterValidator(_as_path)]
"""A data set of the hub, or a local one by a path, which a recipe so has relative to its own file, as all its paths."""


def library_problem(what: str) -> str | None:
    """Say that the library is not installed; None where it is.

    :param what: What needs it, for the message.
    """
    if find_spec("datasets") is not None:
        return None
    return f"{what} needs the datasets library: pip install 'ecoflap[datasets]'."


class Stored(NamedTuple):
    """Holds a data set that the library reads.

    :param name: Its name at the hub, or its path.
    :param config: Which of its configurations; None for its only one.
    :param split: Which of its splits.
    :param where: What it is called in messages.
    """

    name: str
    config: str | None
    split: str
    where: str

    @classmethod
    def of_hub(cls, name: Path | str, config: str | None, split: str) -> "Stored":
        """Name a data set of the hub, or a local one by its path as the library takes it."""
        return cls(str(name), config, split, f"dataset {str(name)!r}")

    def load(self) -> Any:
        """Load the split.

        :raises DataError: Where there is none, or no network to fetch it.
        """
        from datasets import load_dataset, load_from_disk
        from datasets.exceptions import DatasetsError

        path = Path(self.name)
        try:
            if is_saved(path):
                return self._split_of(load_from_disk(self.name))
            if path.is_file():
                return load_dataset("parquet", data_files={self.split: self.name}, split=self.split)
            return load_dataset(self.name, self.config, split=self.split)
        except (OSError, ValueError, KeyError, DatasetsError) as error:  # a missing network included
            raise DataError(f"{self.where} cannot be loaded: {error}") from error

    def _split_of(self, saved: Any) -> Any:
        """Give the split of several that is asked for; one that was saved by itself is what it is."""
        if not isinstance(saved, dict):
            return saved
        if self.split not in saved:
            known = f"{nearest(self.split, saved)} Known: {', '.join(saved)}."
            raise DataError(f"{self.where} has no split {self.split!r}.{known}")
        return saved[self.split]


def missing_dataset(dataset: Path | str | None) -> str | None:
    """Say that a local data set is not there; None where it is, and of one of the hub, which is not asked."""
    return missing_path(dataset) if isinstance(dataset, Path) and not dataset.exists() else None


def files_of_dataset(dataset: Path | str | None) -> Iterator[Path]:
    """Name the files of a local data set; none of one of the hub."""
    path = None if dataset is None else Path(dataset)
    if path is not None and path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
    elif path is not None and path.exists():
        yield path


def is_stored(path: Path) -> bool:
    """Say whether a path is a parquet file, a folder of them or of one ``data``, or was written by ``save_to_disk``."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return is_saved(path) or any(next(path.glob(pattern), None) for pattern in ("*.parquet", "data/*.parquet"))


def stored_table(stored: Stored, folder: Path, columns: Columns) -> Table:
    """Read a data set as a table, with its images left as the bytes that they are stored as.

    :param folder: The folder that image files are named relative to.
    :raises DataError: Where it cannot be loaded, holds no rows, or lacks a column.
    """
    from datasets import ClassLabel

    rows, where = stored.load(), stored.where
    if not len(rows):
        raise DataError(f"{where} holds no rows.")
    there = rows.column_names
    column_of = columns(there, where)
    rows = _undecoded(rows.select_columns(list(dict.fromkeys(column_of.values()))))
    label = rows.features.get(column_of.get("label", ""))

    def row(number: int) -> Row:
        return row_from(number, f"{where}, row {number}", rows[number], column_of, folder)

    def values(what: str) -> Iterator[Any]:
        return iter(rows[column_of[what]])

    classes = list(label.names) if isinstance(label, ClassLabel) else None
    return Table(where, len(rows), row, values, classes, labelled="label" in column_of, columns=there)


def _undecoded(rows: Any) -> Any:
    """Leave images as bytes: the library's own decoding ends at the first broken one, and does not say which."""
    from datasets import Image

    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def is_saved(path: Path) -> bool:
    """Say whether a folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in SAVED)
