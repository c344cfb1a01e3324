"""COCO captions, NoCaps, and Karpathy's splits of COCO and Flickr30k are read as they are published, a row an image.

Chen et al., arXiv:1504.00325; Agrawal et al., ICCV 2019; Karpathy & Fei-Fei, CVPR 2015.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.published_files import FOLDER, Entries, Entry, by_key, columns_of, key_in, row_of


def coco_entries(document: Mapping[str, Any], file: Path) -> Entries:
    """Give each image of COCO or NoCaps with its captions, in the order of the file."""
    images, captions = document["images"], _captions(document["annotations"], file)
    numbers = by_key(images, "id", f"{file} images")
    if images and not numbers.keys() & captions.keys():
        raise DataError(f"none of the annotations of {file} is of one of its images. Captions are missing.")

    def at(number: int) -> tuple[str, Entry]:
        image = images[number]
        own = {"image": _file_name(image), "image_id": image["id"], "caption": captions.get(image["id"], [])}
        return f" images[{number}]", {**image, **own}

    return Entries(columns_of(images, "image", "image_id", "caption"), len(images), at, FOLDER)


def karpathy_entries(document: Mapping[str, Any], file: Path, split: str) -> Entries:
    """Give the images of one of Karpathy's splits with their captions.

    :param split: A split, or several joined by ``+``, such as ``train+restval``.
    """
    images, wanted = document["images"], [name.strip() for name in split.split("+")]
    rows = [row_of(images, number, f"{file} images") for number in range(len(images))]
    there = list(dict.fromkeys(str(row.get("split")) for row in rows))
    unknown = next((name for name in wanted if rows and name not in there), None)
    if unknown is not None:
        known = f"{nearest(unknown, there)} Known: {', '.join(there)}; several are joined by +, train+restval."
        raise DataError(f"{file} has no split {unknown!r}.{known}")
    chosen = [number for number, row in enumerate(rows) if row.get("split") in wanted]

    def at(number: int) -> tuple[str, Entry]:
        place = chosen[number]
        row = rows[place]
        return f" images[{place}]", {**row, "image": _within(row), "caption": row.get("sentences")}

    return Entries(columns_of(rows, "image", "caption"), len(chosen), at, FOLDER)


def _captions(annotations: Any, file: Path) -> dict[Any, list[Any]]:
    """Give the captions by image."""
    found: dict[Any, list[Any]] = {}
    for number in range(len(annotations)):
        row = row_of(annotations, number, f"{file} annotations")
        image = key_in(row, "image_id")
        if image is None or "caption" not in row:
            lack = "image_id" if image is None else "caption"
            raise DataError(f"{file} annotations[{number}] has no {lack}.")
        found.setdefault(image, []).append(row["caption"])
    return found


def _file_name(image: Entry) -> str | None:
    """Name an image's file as the row does, or as its address ends, or by its number at Open Images, as in NoCaps."""
    name, address, number = (image.get(key) for key in ("file_name", "coco_url", "open_images_id"))
    if name or address:
        return str(name) if name else PurePosixPath(str(address)).name
    return f"{number}.jpg" if number else None


def _within(row: Entry) -> tuple[str, ...]:
    """Name an image's file in its folder, such as COCO's ``val2014``, and without, for a user who names that folder."""
    name, folder = row.get("filename"), row.get("filepath")
    if not isinstance(name, str):
        return ()
    return (f"{folder}/{name}", name) if folder else (name,)
