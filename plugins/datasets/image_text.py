"""The dataset ``image_text`` yields images with their captions, as CC3M has them, ECoFLaP's calibration data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Sample
from ecoflap.plugins.datasets.shared.caption_files import coco_entries, karpathy_entries
from ecoflap.plugins.datasets.shared.image_tables import Row
from ecoflap.plugins.datasets.shared.indexed_images import IMAGE, IndexedImages
from ecoflap.plugins.datasets.shared.published_files import CAPTIONS, KARPATHY, Entries, recognised
from ecoflap.plugins.datasets.shared.row_texts import texts_of
from ecoflap.plugins.datasets.shared.unusable_rows import UnusableRow


@hookimpl
def ecoflap_register_datasets() -> Mapping[str, type["ImageText"]]:
    return {"image_text": ImageText}


@dataclass(frozen=True)
class ImageText(IndexedImages):
    """Yield images and captions from an index, from published files, or from a data set of the hub.

    A sample has the chosen caption as ``text``, and all captions of its image as ``texts``.

    :param path: An index (``.jsonl``, ``.json``, ``.csv``), or a folder with one: ``index.jsonl``, ``index.json``,
        ``index.csv``, ``metadata.jsonl`` or ``metadata.csv``. Or the JSON file of COCO captions, of NoCaps, or of
        Karpathy's splits of COCO or Flickr30k. Or parquet files, or what ``save_to_disk`` wrote; needs ``datasets``.
    :param images: The folder that the index names images relative to, where it is not the index's own.
    :param dataset: A data set of the Hugging Face hub instead, or a local one by a path that begins with ``/``, ``./``,
        ``../`` or ``~``, with its ``config``; needs ``datasets``.
    :param split: A split of a data set or of Karpathy's: ``train``, ``val``, ``test``, or several, ``train+restval``.
    :param columns: Names of the columns, where they are not ``image`` (or ``file_name``) and ``text`` (or ``caption``):
        ``{text: title}``. A caption is a text or a list of them. ``image_id`` and ``kind`` (or NoCaps' ``domain``) may
        be there.
    :param samples: How many samples it yields; None for all there are.
    :param order: ``random`` draws without replacement, because many indexes are sorted by what is seen. ``first`` takes
        the rows from the first on, as the paper does with CC3M.
    :param seed: Seed of all that is random here, which is the same on every machine.
    :param portion: The share of the rows to use: calibrate on ``[0, 0.7]`` and evaluate on ``[0.7, 1]``. Which rows
        these are depends on neither order nor seed. An image with several rows may be in both.
    :param skip: Which rows to pass over and draw others for, instead of an error: ``missing`` files, ``unreadable``
        images, ``empty`` captions; true for all of these.
    :param captions: Which of an image's captions is taken: the ``first``, or one at ``random``.
    :param prefix: Whether each caption is cut in two between words, so that the model goes on with it: the beginning,
        of at most half of the words, becomes the question and the rest the answer, as the paper has BLIP-2 do.
    """

    captions: Literal["first", "random"] = "first"
    prefix: bool = False

    name: ClassVar[str] = "image_text"
    reads: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": IMAGE,
        "text": ("text", "caption"),
        "image_id": ("image_id", "cocoid", "imgid", "img_id"),
        "kind": ("kind", "domain"),
    }
    optional: ClassVar[tuple[str, ...]] = ("image_id", "kind")
    empty: ClassVar[str] = "have an empty caption"

    def _published(self, document: Any, file: Path) -> Entries:
        if recognised(document, file, (CAPTIONS, KARPATHY)) is KARPATHY:
            return karpathy_entries(document, file, self.split)
        return coco_entries(document, file)

    def _rest(self, row: Row) -> Sample:
        # Seeded by the row alone, so that a caption is the same whichever others are drawn.
        random, captions = Random(f"{self.seed} {row.number}"), texts_of(row, "text")
        if not captions:
            raise UnusableRow("empty", row.where)
        caption = random.choice(captions) if self.captions == "random" else captions[0]
        if not self.prefix:
            return Sample(text=caption, texts=tuple(captions))
        gaps = list(re.finditer(r"\s+", caption))
        if not gaps:
            raise UnusableRow("empty", f"{row.where} (of one word, {caption!r:.40}, no half can be taken)")
        cut = gaps[random.randrange((len(gaps) + 1) // 2)]
        return Sample(question=caption[: cut.start()], answers=(caption[cut.end() :],), texts=tuple(captions))
