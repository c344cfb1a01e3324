"""Images alone, with the numbers of their classes where these are known."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared.class_names import numbered
from ecoflap.plugins.datasets.shared.flaws import Flaw
from ecoflap.plugins.datasets.shared.image_tables import Row, Table, folder_table, missing_path
from ecoflap.plugins.datasets.shared.indexed_images import IMAGE, IndexedImages


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["Image"]]:
    return {"image": Image}


@dataclass(frozen=True)
class Image(IndexedImages):
    """Images from an index, from a folder, or from a data set of the hub.

    A folder without an index is read as it is: the images in it; where there are none, those of its subfolders, each a
    class, numbered from 0 in the order of the subfolders' names (of a single subfolder no class is made). Labels that
    are words are numbered in their order too. The numbers are those of a model that was trained on the same classes:
    ten of ImageNet's thousand get other ones, unless ``names`` lists them all.

    :param path: A folder of images, an index, or a folder with one: ``index.jsonl``, ``index.json``, ``index.csv``,
        ``metadata.jsonl`` or ``metadata.csv``. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param images: The folder that an index names images relative to, where it is not its own.
    :param dataset: A data set of the Hugging Face hub instead, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Where they are not ``image`` (or ``file_name``) and ``label``, which may be missing, as may
        ``image_id`` and ``kind``.
    :param samples: How many; None for all there are.
    :param order: ``random``: without replacement, for many folders and indexes are sorted by class, and their first
        rows show the model one thing. ``first``: from the first row on.
    :param seed: Of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images; true for all of these.
    :param names: A file of the model's classes, in the order of their numbers: a name a line, or after a folder's name
        as in ImageNet's ``LOC_synset_mapping.txt``; or JSON, a list or ``imagenet_class_index.json``.
    :param labels: Whether to read classes. False where subfolders or labels are not those of the model.
    """

    names: Path | None = None
    labels: bool = True

    name: ClassVar[str] = "image"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": IMAGE,
        "label": ("label",),
        "image_id": ("image_id", "id"),
        "kind": ("kind",),
    }
    optional: ClassVar[tuple[str, ...]] = ("label", "image_id", "kind")

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by their numbers, before any sample is drawn; None where labels are numbers alone."""
        wrong = [*self._wrong_parameters()]
        if wrong:
            raise DataError(*wrong)
        classes = self._table().classes
        return None if classes is None else tuple(classes)

    def _wrong_parameters(self) -> Iterator[str]:
        yield from super()._wrong_parameters()
        if self.names is not None and not self.labels:
            yield f"{self.name}: names is for labels, and labels is false. Leave one of them out."
        if self.names is not None and not self.names.is_file():
            yield f"{self.name}: names: {missing_path(self.names)}"

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        found = super()._columns(there, where)
        if self.names is not None and "label" not in found:
            raise DataError(f"names is for labels, and {where} has no column 'label'. Known: {', '.join(there)}.")
        return found if self.labels else {what: column for what, column in found.items() if what != "label"}

    def _table(self) -> Table:
        table = super()._table()
        try:
            return numbered(table, self.names) if table.labelled else table
        except DataError as error:
            raise DataError(*(f"{self.name}: {problem}" for problem in error.problems)) from error

    def _indexes(self) -> Iterator[Path]:
        yield from super()._indexes()
        yield from filter(None, [self.names])

    def _rest(self, row: Row) -> Sample:
        return Sample(label=_label(row) if "label" in row.values else None)

    def _without_index(self, folder: Path) -> Table:
        if self.images is not None:
            raise DataError(f"images is for an index, and the folder {folder} holds none. Leave images out.")
        return folder_table(folder, self.labels)


def _label(row: Row) -> int:
    """A whole number, or its digits, as CSV has it."""
    label: Any = row.values["label"]
    if isinstance(label, str) and label.strip().isdecimal():
        return int(label)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise Flaw("malformed", f"{row.where} (its label is {label!r:.40}, not a class's number; or set labels: false)")
    return label
