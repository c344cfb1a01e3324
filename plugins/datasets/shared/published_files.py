"""The JSON files that public data sets of images come as are recognised by what is in them, never by their names."""

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError, first_of
from ecoflap.plugins.datasets.shared.text_files import json_object, read_text, refuse_halves

FOLDER = "Set images: to their folder."
"""What to do where image files are missing."""

Entry = Mapping[str, Any]
"""What a row holds, by column."""


@dataclass(frozen=True)
class Entries:
    """Holds the rows of one file, each of which is put together when it is asked for.

    :param columns: Names of the columns that rows have.
    :param size: How many rows there are.
    :param at: Gives the place of a row in the file, for messages, and the row. Its image may be a tuple of names, of
        which the first whose file is there is meant.
    :param hint: What to do where image files are missing.
    """

    columns: Sequence[str]
    size: int
    at: Callable[[int], tuple[str, Entry]]
    hint: str = ""


@dataclass(frozen=True, eq=False)
class Layout:
    """Says what a file of a data set looks like.

    :param name: What such files are called in messages.
    :param needs: By the key of each list in the file, the fields that the list's objects have. The key ``*`` stands
        for the values of the file's one object.
    :param reader: Which dataset reads it as what, for messages.
    :param without: A sentence on why something may be missing.
    """

    name: str
    needs: Mapping[str, tuple[str, ...]]
    reader: str
    without: str = ""

    def lacks(self, document: Mapping[str, Any]) -> list[str]:
        """Name what the document lacks of this layout, by the first of each list's objects."""
        return [lack for key, fields in self.needs.items() for lack in _lacks(document, key, fields)]

    @property
    def outline(self) -> str:
        """Write the layout as JSON, with the names alone."""
        inside = {key: ", ".join(f'"{field}"' for field in fields) for key, fields in self.needs.items()}
        if "*" in inside:
            return f'{{"1": {{{inside["*"]}}}, …}}'
        return "{" + ", ".join(f'"{key}": [{{{fields}}}, …]' for key, fields in inside.items()) + "}"


VQA = Layout(
    "VQA questions", {"questions": ("question_id", "image_id", "question")}, "image_question_answer reads as path"
)
VQA_ANSWERS = Layout(
    "VQA annotations",
    {"annotations": ("question_id", "image_id", "answers")},
    "image_question_answer reads as annotations, with the questions as path",
)
GQA = Layout("GQA questions", {"*": ("imageId", "question")}, "image_question_answer reads as path")
KARPATHY = Layout(
    "Karpathy's splits", {"images": ("filename", "split", "sentences")}, "image_text reads as path, with a split"
)
CAPTIONS = Layout(
    "COCO captions",
    {"images": ("id",), "annotations": ("image_id", "caption")},
    "image_text reads as path",
    " Captions are missing in the files of test splits.",
)
LAYOUTS = (VQA, VQA_ANSWERS, GQA, KARPATHY, CAPTIONS)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Of VQA's record of an answer only the answer is kept, which takes a third of the memory. A blank answer stays a
    record, so that it is still counted as one of ten.

    :raises DataError: Where the file cannot be read, or is not JSON.
    """
    text = read_text(file)
    try:
        found = json.loads(text, object_hook=_answer)
    except RecursionError as error:
        raise DataError(f"{file} is nested too deeply.") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}. Objects one a line belong in a .jsonl file.") from error
    refuse_halves(text, file)
    return found


def recognised(document: Any, file: Path, read: Sequence[Layout]) -> Layout:
    """Find the layout of a document, which has to be one of those that are read.

    :param document: What the file holds.
    :param read: The layouts that the dataset reads besides a list of rows.
    :raises DataError: With what was found, what is known and what is nearest.
    """
    if not isinstance(document, dict):
        raise DataError(f"{file} is {_named(document)}. {_expected(read)}")
    fitting = next((layout for layout in LAYOUTS if not layout.lacks(document)), None)
    if fitting is None:
        raise DataError(
            f"{file} is of a layout that is not known: {_named(document)}.{_near(document)} {_expected(read)}"
        )
    if fitting not in read:
        raise DataError(f"{file} holds {fitting.name}, which {fitting.reader}. {_expected(read)}")
    return fitting


def row_of(rows: Sequence[Any], number: int, where: str) -> Entry:
    """Give a row of a list, which has to be a JSON object.

    :param where: The list's place, for messages.
    """
    return json_object(rows[number], f"{where}[{number}]")


def by_key(rows: Sequence[Any], key: str, where: str) -> dict[Any, Entry]:
    """Give rows by what they have under a key.

    :raises DataError: Where one has nothing there, or two have the same.
    """
    found: dict[Any, Entry] = {}
    for number in range(len(rows)):
        row = row_of(rows, number, where)
        name = key_in(row, key)
        if name is None or name in found:
            raise DataError(f"{where}[{number}] has {'no' if name is None else 'the same'} {key}{_shared(name)}.")
        found[name] = row
    return found


def key_in(row: Entry, key: str) -> str | int | None:
    """Give a name or number that other rows refer to; None where there is none."""
    name = row.get(key)
    return name if isinstance(name, str | int) else None


def columns_of(rows: Iterable[Any], *more: str) -> list[str]:
    """Name the columns of the first row, and more."""
    first: Any = next(iter(rows), None)
    return list(dict.fromkeys([*(first if isinstance(first, dict) else ()), *more]))


def _answer(found: dict[str, Any]) -> Any:
    """Make VQA's record of an answer the answer, which is stored once however often it is given."""
    if "answer_confidence" not in found:
        return found
    answer = found.get("answer")
    return sys.intern(answer) if isinstance(answer, str) and answer.strip() else found


def _shared(name: Hashable) -> str:
    return "" if name is None else f", {name!r}, as one before it"


def _lacks(document: Mapping[str, Any], key: str, fields: Sequence[str]) -> list[str]:
    """Name the missing fields of a list's first object, or the key where there is no list. An empty list lacks none."""
    rows = list(document.values())[:1] if key == "*" else document.get(key)
    if not isinstance(rows, list) or (key == "*" and not rows):
        return [key]
    first: Any = rows[0] if rows else tuple(fields)
    missing = [field for field in fields if not isinstance(first, dict | tuple) or field not in first]
    if key == "*":  # any object has values, so that it takes one of the fields to look like this layout
        return missing if len(missing) < len(fields) else [key]
    return [f"{key}[0].{field}" for field in missing]


def _named(document: Any) -> str:
    """Say what a document is, for messages."""
    if isinstance(document, list):
        return "a list"
    if not isinstance(document, dict):
        return f"the JSON value {document!r:.40}"
    keys = [*map(str, document)]
    return f"an object with {first_of(keys, 8)}" if keys else "an empty object"


def _near(document: Mapping[str, Any]) -> str:
    """Name the layout of which the least is missing, unless all of it is."""

    def missing(layout: Layout) -> float:
        lacks = layout.lacks(document)
        return sum(1 + len(layout.needs.get(lack, ())) for lack in lacks) / sum(
            1 + len(f) for f in layout.needs.values()
        )

    near = min(LAYOUTS, key=missing)
    if missing(near) == 1:
        return ""
    return f" Nearest: {near.name}, {near.outline}, but {', '.join(near.lacks(document))} is missing.{near.without}"


def _expected(read: Sequence[Layout]) -> str:
    """Say what a dataset reads, for messages."""
    known = "".join(f"; {layout.name}, {layout.outline}" for layout in read)
    return f'Read here: a list of objects, one for each row, [{{"image": …}}, …]{known}.'
