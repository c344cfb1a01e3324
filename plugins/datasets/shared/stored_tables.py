"""Data sets read by the ``datasets`` library: of the hub, parquet files, and folders that it saved."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.image_tables import Columns, Row, Table, row_from

SAVED = ("state.json", "dataset_dict.json")
"""What ``save_to_disk`` writes, of one split or of several."""


def is_stored(path: Path) -> bool:
    """Whether a path is a parquet file, a folder of them (or of one ``data``), or one of ``save_to_disk``."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return _is_saved(path) or any(next(path.glob(pattern), None) for pattern in ("*.parquet", "data/*.parquet"))


def hub_table(name: str, config: str | None, split: str, images: Path | None, columns: Columns) -> Table:
    """A data set by its name at the hub, or a local one by its path as the library takes it."""
    return _table(f"dataset {name!r}", name, config, split, Path.cwd() if images is None else images, columns)


def stored_table(path: Path, config: str | None, split: str, images: Path | None, columns: Columns) -> Table:
    """One that :func:`is_stored`. Image files that it names are relative to its folder."""
    folder = path.parent if path.is_file() else path
    return _table(str(path), str(path), config, split, folder if images is None else images, columns)


def _table(where: str, name: str, config: str | None, split: str, folder: Path, columns: Columns) -> Table:
    """With images left as the bytes they are stored as."""
    from datasets import ClassLabel, Image

    table = _loaded(where, name, config, split)
    if not len(table):
        raise DataError(f"{where} holds no rows.")
    column_of = columns(table.column_names, where)
    table = table.select_columns(list(dict.fromkeys(column_of.values())))
    for column, feature in table.features.items():
        if isinstance(feature, Image):
            # its own decoding ends at the first broken image, and does not say which
            table = table.cast_column(column, Image(decode=False))
    label = table.features.get(column_of.get("label", ""))

    def row(number: int) -> Row:
        return row_from(number, f"{where}, row {number}", table[number], column_of, folder)

    def values(what: str) -> Iterator[Any]:
        return iter(table[column_of[what]])

    classes = list(label.names) if isinstance(label, ClassLabel) else None
    return Table(where, len(table), row, values, classes, labelled="label" in column_of)


def _loaded(where: str, name: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(name)
    try:
        if _is_saved(path):
            return _split_of(load_from_disk(name), split, where)
        if path.is_file():
            return load_dataset("parquet", data_files={split: name}, split=split)
        return load_dataset(name, config, split=split)
    except (OSError, ValueError, KeyError, DatasetsError) as error:  # a missing network included
        raise DataError(f"{where} cannot be loaded: {error}") from error


def _split_of(saved: Any, split: str, where: str) -> Any:
    """Of several splits the one that is asked for; one that was saved by itself is what it is."""
    if not isinstance(saved, dict):
        return saved
    if split not in saved:
        raise DataError(f"{where} has no split {split!r}.{nearest(split, saved)} Known: {', '.join(saved)}.")
    return saved[split]


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in SAVED)
