"""The dataset ``image_pair`` yields two images with a sentence that is true or false of them, as NLVR2 has them.

Suhr et al., A corpus for reasoning about natural language grounded in photographs, ACL 2019,
https://arxiv.org/abs/1811.00491.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.plugins.datasets.shared.image_tables import Row, Table, image_at
from ecoflap.plugins.datasets.shared.indexed_images import IndexedImages
from ecoflap.plugins.datasets.shared.indexed_rows import WantedColumns
from ecoflap.plugins.datasets.shared.published_files import FOLDER
from ecoflap.plugins.datasets.shared.row_texts import texts_of
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow

CLASSES = ("False", "True")
"""What a sentence may be, by the numbers that labels are."""
NUMBERS = {"false": 0, "true": 1, "0": 0, "1": 1}
IDENTIFIER = re.compile(r"((\w+)-\d+-\d+)-\d+")
"""NLVR2's name of a row, ``dev-850-0-3``: of its split, a set of images, a pair of the set, and a sentence on it."""


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["ImagePair"]]:
    return {"image_pair": ImagePair}


@dataclass(frozen=True)
class ImagePair(IndexedImages):
    """Yield two images with a sentence and whether it is true of them, from an index, NLVR2's files, or the hub.

    A sample has both as ``images``, the sentence as ``text``, and 1 as ``label`` where it is true, else 0.

    :param path: NLVR2's ``train.json``, ``dev.json`` or ``test1.json``; LAVIS' lists of it; an index (``.jsonl``,
        ``.json``, ``.csv``), or a folder with one: ``index.jsonl``, ``index.json``, ``index.csv``, ``metadata.jsonl``
        or ``metadata.csv``. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param images: The folder that images are named relative to, where it is not the index's own. NLVR2's are looked for
        in it, and below it in the folders that NLVR2 has for them: ``dev``, ``test1``, ``train/92``.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config`` and ``split``; needs ``datasets``.
    :param columns: Names of the columns, where they are not ``sentence`` (or ``text``), ``label``, and ``images``, a
        list of two; or ``left`` and ``right`` (or ``left_image``, ``right_image``, or ``image0``, ``image1``) for a
        column each; or ``id`` (or ``identifier``), by which NLVR2's files tell their images. A label is true or false,
        in words, as JSON has them, or as 1 and 0. ``image_id``, of the pair, and ``kind`` may be there.
    :param samples: How many samples it yields; None for all there are.
    :param order: ``random`` draws without replacement. ``first`` takes the rows from the first on.
    :param seed: Seed of the random order, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed. A pair with several sentences may be in both.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images, ``empty`` sentences; true for all of these.
    """

    name: ClassVar[str] = "image_pair"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "images": ("images",),
        "left": ("left", "left_image", "image0"),
        "right": ("right", "right_image", "image1"),
        "text": ("sentence", "text"),
        "label": ("label",),
        "id": ("identifier", "id"),
        "image_id": ("image_id",),
        "kind": ("kind",),
        "directory": ("directory",),
    }
    optional: ClassVar[tuple[str, ...]] = ("images", "left", "right", "id", "image_id", "kind", "directory")
    empty: ClassVar[str] = "have no sentence"

    def classes(self) -> tuple[str, ...]:
        """Give what a sentence may be, by the numbers that labels are."""
        return CLASSES

    def _columns(self, there: Sequence[str], where: str) -> dict[str, str]:
        found = super()._columns(there, where)
        if not ("images" in found or {"left", "right"} <= found.keys() or "id" in found):
            WantedColumns({"images": self.reads["images"]}, (), self.columns or {}).find(there, where)  # tells it
        return found

    def _table(self) -> Table:
        table = super()._table()
        return replace(table, row=lambda number: _in_words(table.row(number), table.classes), hint=table.hint or FOLDER)

    def _images_in(self, row: Row) -> Sequence[Any]:
        return [image_at(named, row.folder)[0] for named in _named(row)]

    def _showing(self, sample: Sample, images: Sequence[Any]) -> Sample:
        return replace(sample, images=tuple(images))

    def _at_a_glance(self, row: Row) -> Sample:
        known = row.values.get("image_id")
        return super()._at_a_glance(row.having(image_id=_pair(row) if known is None else known))

    def _rest(self, row: Row) -> Sample:
        sentences = texts_of(row, "text")
        if not sentences:
            raise UnusableRow("empty", row.where)
        if len(sentences) > 1:
            raise UnusableRow("malformed", f"{row.where} (it holds {len(sentences)} sentences)")
        return Sample(text=sentences[0], label=_label(row))


def _named(row: Row) -> Sequence[Any]:
    """Give what a row names its two images by.

    :raises UnusableRow: Where it does not name two.
    """
    several, two = row.values.get("images"), [row.values.get(side) for side in ("left", "right")]
    if several is None and two == [None, None]:
        return _published(row)
    named = two if several is None else several
    if not isinstance(named, list | tuple) or len(named) != 2:
        found = f"{len(named)} of them" if isinstance(named, list | tuple) else f"{named!r:.40}"
        raise UnusableRow("malformed", f"{row.where} (its images are {found}, and two are needed)")
    return named


def _published(row: Row) -> Sequence[Any]:
    """Give the names that the two images of a row of NLVR2 may have, each in the folders that it may be in."""
    found = _identified(row)
    if found is None:
        told = row.values.get("id")
        raise UnusableRow(
            "malformed", f"{row.where} (it names no images, and its identifier is {told!r:.40}, none like dev-850-0-3)"
        )
    directory = row.values.get("directory")
    within = "" if directory is None else f"{directory}/"
    files = (f"{found[1]}-img{side}.png" for side in (0, 1))
    return [(f"{found[2]}/{within}{file}", f"{within}{file}", file) for file in files]


def _pair(row: Row) -> str | None:
    """Give the name of a row's pair of images, which sentences on the same pair share; None where it has none."""
    found = _identified(row)
    if found is not None:
        return found[1]
    names = [image_at(named, row.folder)[1] for named in _named(row)]
    return None if None in names else " ".join(map(str, names))


def _identified(row: Row) -> re.Match[str] | None:
    """Take NLVR2's name of a row apart."""
    return IDENTIFIER.fullmatch(str(row.values.get("id")))


def _in_words(row: Row, classes: Sequence[str] | None) -> Row:
    """Give a row whose label is a word, where it is the number of one in a saved table."""
    label: Any = row.values.get("label")
    if classes is None or not isinstance(label, int) or not 0 <= label < len(classes):
        return row
    return row.having(label=classes[label])


def _label(row: Row) -> int:
    """Give 1 for a true sentence, and 0 for a false one."""
    label = row.values.get("label")
    number = NUMBERS.get(str(label).strip().lower()) if isinstance(label, str | int) else None
    if number is None:
        raise UnusableRow("malformed", f"{row.where} (its label is {label!r:.40}, neither True nor False)")
    return number
