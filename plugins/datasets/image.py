"""Images alone, with the numbers of their classes where these are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.errors import DataError
from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.parts import Sample
from ecoflap.plugins.datasets.flaws import Flaw
from ecoflap.plugins.datasets.image_tables import Row, Table, folder_table
from ecoflap.plugins.datasets.indexed_images import IMAGE, IndexedImages


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["Image"]]:
    return {"image": Image}


@dataclass(frozen=True)
class Image(IndexedImages):
    """Images from an index, from a folder, or from a data set of the hub.

    A folder without an index is read as it is: the images in it; where there are none, those of its subfolders, each a
    class, numbered from 0 in the order of the subfolders' names (of a single subfolder no class is made). The numbers
    are those of a model that was trained on the same folders: ten of ImageNet's thousand would get other ones.

    :param path: A folder of images, an index, or a folder with one: ``index.jsonl``, ``index.json``, ``index.csv``,
        ``metadata.jsonl`` or ``metadata.csv``.
    :param images: The folder that an index names images relative to, where it is not its own.
    :param dataset: A data set of the Hugging Face hub instead, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Where they are not ``image`` (or ``file_name``) and ``label``, which may be missing.
    :param samples: How many; None for all there are.
    :param order: ``random``: without replacement, for many folders and indexes are sorted by class, and their first
        rows show the model one thing. ``first``: from the first row on.
    :param seed: Of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images; true for all of these.
    :param labels: Whether to read classes. False where subfolders or labels are not those of the model.
    """

    labels: bool = True

    name: ClassVar[str] = "image"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {"image": IMAGE, "label": ("label",)}
    optional: ClassVar[tuple[str, ...]] = ("label",)

    def _rest(self, row: Row) -> Sample:
        return Sample(label=_label(row) if self.labels and "label" in row.values else None)

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
