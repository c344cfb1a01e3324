"""Datasets of images share where image files are looked for, and which rows without one may be passed over."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared.image_files import LastImage
from ecoflap.plugins.datasets.shared.image_tables import Row
from ecoflap.plugins.datasets.shared.indexed_rows import IndexedRows, MakeSample
from ecoflap.plugins.datasets.shared.row_texts import name_in
from ecoflap.plugins.datasets.shared.text_files import missing_path
from ecoflap.plugins.datasets.shared.unusable_rows import SKIPPABLE, RowTally, Skippable, UnusableRow

IMAGE = ("image", "file_name")
"""What the column of images may be called; the latter is the name of the Hugging Face image folder."""


@dataclass(frozen=True)
class IndexedImages(IndexedRows):
    """Yield images, and what belongs to them, by an index, by a published file, or from a data set of the hub.

    Image files are named relative to the index's own folder, or to ``images``; an absolute path is taken as it is, and
    one with ``..`` leads where it says. An index can so name any file that its reader may read, as an image alone.

    :cvar empty: What a row does that lacks what the dataset reads, for messages.
    """

    images: Path | None = None
    skip: bool | tuple[Skippable, ...] = False

    empty: ClassVar[str] = "have no text"

    def files(self) -> Iterator[Path]:
        """Name what the samples depend on, so that a change of any is seen: indexes, and the images looked at.

        A folder stands for the names in it. What is missing is left out, and all that a broken index would name.
        """
        found = (path for path in (*self._indexes(), *self._images()) if path.exists())
        return iter(dict.fromkeys(found))

    def _images(self) -> Sequence[Path]:
        """Name the image files of the rows that are looked at, which may depend on which images can be read."""
        images: list[Path] = []
        opens = self.samples is not None and self._new_tally().skips("unreadable")
        make = self._whole() if opens else self._at_a_glance

        def look(row: Row) -> Sample:
            images.extend(image for image in self._images_in(row) if isinstance(image, Path))
            return make(row)

        if not self.fetches and not any(self._parameter_problems()):
            with suppress(DataError):
                for _ in self._walk(look, ignore):
                    pass
        return images

    # --- what each dataset adds

    @abstractmethod
    def _rest(self, row: Row) -> Sample:
        """Make all of a sample but its image.

        :raises UnusableRow: Where the row lacks what it takes.
        """

    def _images_in(self, row: Row) -> Sequence[Any]:
        """Give the images of a row, as a :class:`Row` has its one.

        :raises UnusableRow: Where the row does not name as many as the dataset reads.
        """
        return (row.image,)

    def _showing(self, sample: Sample, images: Sequence[Any]) -> Sample:
        """Give a sample with the images of its row, which have been read."""
        return replace(sample, image=images[0])

    # --- what is wrong with parameters

    def _wrong_parameters(self) -> Iterator[str]:
        """Say what is wrong with the parameters."""
        yield from super()._wrong_parameters()
        if find_spec("PIL") is None:
            yield "reading images needs Pillow: pip install 'ecoflap[images]'."
        if self.images is not None and not self.images.is_dir():
            file = f"{self.images} is a file; the folder of the image files is meant."
            yield f"images: {file if self.images.exists() else missing_path(self.images)}"

    # --- which rows are drawn

    def _images_beside(self, folder: Path) -> Path:
        return self.images or folder

    def _new_tally(self) -> RowTally:
        verbs = {
            "missing": "name an image file that is not there",
            "unreadable": "have an image that cannot be read",
            "empty": self.empty,
            "malformed": "hold what does not belong there",
        }
        skip = self.skip if isinstance(self.skip, tuple) else SKIPPABLE if self.skip else ()
        return RowTally(self.name, verbs, skip)

    # --- how a row becomes a sample

    def _at_a_glance(self, row: Row) -> Sample:
        """Make a sample but for its image, of which only what costs little is seen to: that its file is there."""
        for image in self._images_in(row):
            if image is None:
                raise UnusableRow("missing", f"{row.where} (it names none)")
            if isinstance(image, Path) and not os.path.isfile(image):
                raise UnusableRow("missing", row.with_file(image))
            if not isinstance(image, Path | bytes) and not hasattr(image, "getexif"):
                raise UnusableRow("malformed", f"{row.where} (the image is {image!r:.40})")
        own, image, kind = (name_in(row, what) for what in ("id", "image_id", "kind"))
        return replace(
            self._rest(row), id=image if own is None else own, image_id=image, kind=None if kind is None else str(kind)
        )

    def _whole(self) -> MakeSample:
        images = LastImage()

        def opened(row: Row, image: Any) -> Any:
            try:
                return images.read(image)
            except DataError as error:
                raise UnusableRow("unreadable", f"{row.with_file(image)}: {error}") from None

        def make(row: Row) -> Sample:
            rest = self._at_a_glance(row)
            return self._showing(rest, [opened(row, image) for image in self._images_in(row)])

        return make
