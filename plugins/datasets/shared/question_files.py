"""VQAv2, OK-VQA and GQA are read as they are published: answers in another file, and images by numbers alone.

Goyal et al., CVPR 2017 (https://visualqa.org/download.html); Marino et al., CVPR 2019; Hudson & Manning, CVPR 2019.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from ecoflap.core.errors import DataError, nearest
from ecoflap.plugins.datasets.shared.published_files import (
    FOLDER,
    VQA_ANSWERS,
    Entries,
    Entry,
    by_key,
    columns_of,
    key_in,
    read_json,
    recognised,
    row_of,
)

SUFFIXES = (".jpg", ".png", ".jpeg")
"""Endings that are tried for an image of which only the number is known."""
PREFIXES = {"mscoco": "COCO"}
"""By a question file's ``data_type``, what its images' names begin with, where that is not the same."""
TYPES = ("structural", "semantic", "detailed")
"""What GQA sorts a question under."""

HINT = (
    "Set images: to their folder, and image_name: where files are not called by the image's number alone or as COCO's."
)
"""What to do where image files are missing."""

Names = Callable[[str | int | None], tuple[str, ...]]
"""Gives the names that an image's file may have, by the image's number."""


def vqa_entries(document: Mapping[str, Any], file: Path, annotations: Path | None, image_name: str | None) -> Entries:
    """Give each question of VQAv2 or OK-VQA with what its annotation has, such as ``answers`` and ``answer_type``.

    :param annotations: The file of the answers; None where the questions' own file holds them.
    :param image_name: A pattern of the image files' names; None to try the usual ones.
    """
    questions, where = document["questions"], f"{file} questions"
    answers = _answers(document, file, annotations)
    names = _names(document, file, image_name)
    asked = (key_in(row_of(questions, number, where), "question_id") for number in range(len(questions)))
    if questions and not any(number in answers for number in asked):
        raise DataError(f"none of the questions of {file} is answered in {annotations or file}: of another split?")

    def at(number: int) -> tuple[str, Entry]:
        question = row_of(questions, number, where)
        answer = answers.get(key_in(question, "question_id"), {})
        return f" questions[{number}]", {**answer, **question, "image": names(key_in(question, "image_id"))}

    columns = columns_of(questions, *next(iter(answers.values())), "image")
    return Entries(columns, len(questions), at, FOLDER if "images" in document else HINT)


def gqa_entries(document: Mapping[str, Any], file: Path, image_name: str | None) -> Entries:
    """Give each question of GQA with its number, and its ``types`` as ``types.structural`` and so on."""
    numbers, rows = list(document), list(document.values())
    if not any(isinstance(row, dict) and "answer" in row for row in rows):
        raise DataError(f"the answers are missing in {file}: GQA's files of test splits have none.")
    names = _names({}, file, image_name)

    def at(number: int) -> tuple[str, Entry]:
        row = row_of(rows, number, str(file))
        types = row.get("types") or {}
        of_type = {f"types.{key}": types.get(key) for key in TYPES if isinstance(types, dict)}
        image = names(key_in(row, "imageId"))
        return f"[{numbers[number]!r}]", {**row, **of_type, "question_id": numbers[number], "image": image}

    columns = columns_of(rows, "question_id", "image", *(f"types.{key}" for key in TYPES))
    return Entries(columns, len(rows), at, HINT)


def pattern_problem(image_name: str) -> str | None:
    """Say what is wrong with a pattern such as ``COCO_val2014_{image_id:012d}.jpg``; None where nothing is."""
    try:
        fields = [field for _, field, _, _ in Formatter().parse(image_name) if field is not None]
    except ValueError as error:
        return f"image_name {image_name!r} is no pattern: {error}."
    if fields and set(fields) == {"image_id"}:
        return None
    example = '"COCO_val2014_{image_id:012d}.jpg"'
    return f"image_name is {image_name!r}; a pattern with image_id, and nothing else, in braces is needed: {example}."


def _answers(document: Mapping[str, Any], file: Path, annotations: Path | None) -> dict[Any, Entry]:
    """Give the annotations by question."""
    if annotations is not None:
        other = read_json(annotations)
        recognised(other, annotations, (VQA_ANSWERS,))
        rows, where = other["annotations"], f"{annotations} annotations"
    elif VQA_ANSWERS.lacks(document):
        raise DataError(
            f"the answers are missing: {file} holds questions alone. Set annotations: to the file of their answers."
            f"{_beside(file)} Test splits are published without one."
        )
    else:
        rows, where = document["annotations"], f"{file} annotations"
    if not rows:
        raise DataError(f"{annotations or file} holds no answers.")
    return by_key(rows, "question_id", where)


def _beside(file: Path) -> str:
    """Name the file beside the questions that is likely to hold their answers."""
    names = [other.name for other in file.parent.iterdir() if "annotations" in other.name]
    return nearest(file.name.replace("OpenEnded_", "").replace("questions", "annotations"), names)


def _names(document: Mapping[str, Any], file: Path, image_name: str | None) -> Names:
    """Find out how a question file names images: by the user's pattern, by its own list, or as COCO does."""
    if image_name is not None:
        return lambda number: _by_pattern(image_name, number)
    if "images" in document:
        named = by_key(document["images"], "id", f"{file} images")
        return lambda number: tuple(str(name) for name in [key_in(named.get(number, {}), "file_name")] if name)
    kind = document.get("data_type")
    prefix, part = PREFIXES.get(str(kind), kind or "COCO"), document.get("data_subtype")
    return lambda number: _usual(number, f"{prefix}_{part}_" if part else None)


def _by_pattern(image_name: str, number: str | int | None) -> tuple[str, ...]:
    try:
        return () if number is None else (image_name.format(image_id=number),)
    except ValueError as error:
        raise DataError(f"image_name {image_name!r} does not fit the image_id {number!r}: {error}.") from error


def _usual(number: str | int | None, prefix: str | None) -> tuple[str, ...]:
    """Give the usual names of an image's file: with COCO's twelve digits, and by the bare number."""
    if number is None:
        return ()
    stems = [str(number)]
    if isinstance(number, int):
        stems = [*([f"{prefix}{number:012d}"] if prefix else []), f"{number:012d}", *stems]
    return tuple(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
