"""The dataset ``image`` yields images alone, with the numbers of their classes where these are known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.class_names import numbered
from ecoflap.plugins.datasets.shared.image_tables import Row, Table, folder_table
from ecoflap.plugins.datasets.shared.indexed_images import IMAGE, IndexedImages
from ecoflap.plugins.datasets.shared.text_files import missing_path, named_problems
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow

LARGEST = 2**63 - 1
"""The largest number of a class that a tensor holds."""


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["Image"]]:
    return {"image": Image}


@dataclass(frozen=True)
class Image(IndexedImages):
    """Yield images from an index, from a folder, or from a data set of the hub.

    Of a folder without an index the images in it are taken, or where there are none, those of its subfolders. Each
    subfolder is then a class, numbered from 0 in the order of the subfolders' names, unless there is only one. Labels
    that are words are numbered in their sorted order too. The numbers are those of a model that was trained on the same
    classes: ten of ImageNet's thousand get other ones, unless ``names`` lists them all.

    :param path: A folder of images, an index, or a folder with one: ``index.jsonl``, ``index.json``, ``index.csv``,
        ``metadata.jsonl`` or ``metadata.csv``. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param images: The folder that an index names images relative to, where it is not the index's own.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Names of the columns, where they are not ``image`` (or ``file_name``) and ``label``. The latter may
        be missing, as may ``image_id`` and ``kind``.
    :param samples: How many samples it yields; None for all there are.
    :param order: ``random`` draws without replacement, because many folders and indexes are sorted by class, so that
        their first rows show one thing. ``first`` takes the rows from the first on.
    :param seed: Seed of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images; true for all of these.
    :param names: A file of the model's classes, in the order of their numbers: a name a line, or after a folder's name
        as in ImageNet's ``LOC_synset_mapping.txt``; or JSON, a list or ``imagenet_class_index.json``.
    :param labels: Whether to read classes. Set false where subfolders or labels are not those of the model.
    """

    names: Path | None = None
    labels: bool = True

    name: ClassVar[str] = "image"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": IMAGE,
        "label": ("label",),
        "image_id": ("image_id",),
        "kind": ("kind",),
    }
    optional: ClassVar[tuple[str, ...]] = ("label", "image_id", "kind")

    def classes(self) -> tuple[str, ...] | None:
        """Read the names of the classes, by their numbers; None where labels are numbers alone.

        :raises DataError: Where the data cannot be read, or do not go together with ``names``.
        """
        self._refuse_parameters()
        classes = self._table().classes
        return None if classes is None else tuple(classes)

    def _wrong_parameters(self) -> Iterator[str]:
        yield from super()._wrong_parameters()
        if self.names is not None and not self.labels:
            yield "names is for labels, and labels is false. Leave one of them out."
        if self.names is not None and not self.names.is_file():
            yield f"names: {missing_path(self.names)}"

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        found = super()._columns(there, where)
        if self.names is not None and "label" not in found:
            raise DataError(f"names is for labels, and {where} has no column 'label'. Known: {', '.join(there)}.")
        return found if self.labels else {what: column for what, column in found.items() if what != "label"}

    def _table(self) -> Table:
        table = super()._table()
        with named_problems(self.name):
            return numbered(table, self.names) if table.labelled else table

    def _indexes(self) -> Iterator[Path]:
        yield from super()._indexes()
        yield from filter(None, [self.names])

    def _overlooked(self, table: Table) -> Iterator[str]:
        """Say that there are no labels where a column may be meant for them: the images are read all the same."""
        near = nearest("label", map(str, table.columns))
        if self.labels and not table.labelled and near:
            way_out = "Name it in columns: {label: …}."
            yield f"{table.where} has no column 'label', and no classes are read.{near} {way_out}"

    def _rest(self, row: Row) -> Sample:
        return Sample(label=_label(row) if "label" in row.values else None)

    def _without_index(self, folder: Path) -> Table:
        if self.images is not None:
            raise DataError(f"images is for an index, and the folder {folder} holds none. Leave images out.")
        return folder_table(folder, self.labels)


def _label(row: Row) -> int:
    """Give a class's number, which CSV has as its digits."""
    written: Any = row.values["label"]
    digits = written.strip() if isinstance(written, str) else ""
    is_number = digits.isdecimal() and len(digits.lstrip("0")) <= len(str(LARGEST))
    label = int(digits) if is_number else written
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= LARGEST:
        problem = f"its label is {written!r:.40}, not a class's number; or set labels: false"
        raise UnusableRow("malformed", f"{row.where} ({problem})")
    return label
