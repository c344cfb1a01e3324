"""COCO captions, NoCaps, and Karpathy's splits of COCO and Flickr30k as they are published: a row for each image.

Chen et al., arXiv:1504.00325; Agrawal et al., ICCV 2019; Karpathy & Fei-Fei, CVPR 2015.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.layouts import FOLDER, Entries, Entry, by_key, columns_of, key_in, row_of


def coco_entries(document: Mapping[str, Any], file: Path) -> Entries:
    """Each image with its captions in the order of the file."""
    images, captions = document["images"], _captions(document["annotations"], file)
    numbers = by_key(images, "id", f"{file} images")
    if images and not numbers.keys() & captions.keys():
        raise DataError(f"none of the annotations of {file} is of one of its images. Captions are missing.")

    def at(number: int) -> tuple[str, Entry]:
        image = images[number]
        return f" images[{number}]", {**image, "image": _file_name(image), "caption": captions.get(image["id"], [])}

    return Entries(columns_of(images, "image", "caption"), len(images), at, FOLDER)


def karpathy_entries(document: Mapping[str, Any], file: Path, split: str) -> Entries:
    """The images of a split, or of several, ``train+restval``, with their captions."""
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
    """By image."""
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
    """As named, or as the image's address ends, or its number at Open Images, which NoCaps took its images from."""
    name, address, number = (image.get(key) for key in ("file_name", "coco_url", "open_images_id"))
    if name or address:
        return str(name) if name else PurePosixPath(str(address)).name
    return f"{number}.jpg" if number else None


def _within(row: Entry) -> tuple[str, ...]:
    """With COCO's folder ``val2014``, and without, for a user who names that folder."""
    name, folder = row.get("filename"), row.get("filepath")
    if not isinstance(name, str):
        return ()
    return (f"{folder}/{name}", name) if folder else (name,)
