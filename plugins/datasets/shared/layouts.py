"""The JSON files that public data sets of images come as, told apart by what is in them, never by their names."""

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError

FOLDER = "Set images: to their folder."

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Entries:
    """Rows of one file, each put together when it is asked for.

    :param columns: What rows have.
    :param at: The place of a row in the file, for messages, and the row. Its image may be a tuple of names, of which
        the first that is there is meant.
    :param hint: What to do where image files are missing.
    """

    columns: Sequence[str]
    size: int
    at: Callable[[int], tuple[str, Entry]]
    hint: str = ""


@dataclass(frozen=True, eq=False)
class Layout:
    """What a file of a data set looks like.

    :param needs: By the key of each list in it, what the list's objects have. The key ``*`` is for the values of the
        whole object.
    :param reader: Who reads it, for messages.
    :param without: Why something may be missing.
    """

    name: str
    needs: Mapping[str, tuple[str, ...]]
    reader: str
    without: str = ""

    def lacks(self, document: Mapping[str, Any]) -> list[str]:
        """What it needs and the document has not, by the first of each list's objects."""
        return [lack for key, fields in self.needs.items() for lack in _lacks(document, key, fields)]

    @property
    def told(self) -> str:
        """As JSON, with the names alone."""
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
    """What a JSON file holds; of each of VQA's records of an answer only the answer, a third of the memory.

    A blank answer stays a record, so that it is still counted as one of ten.
    """
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"), object_hook=_answer)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}. Objects one a line belong in a .jsonl file.") from error


def recognised(document: Any, file: Path, read: Sequence[Layout]) -> Layout:
    """The layout of a document, which has to be one of those that are read.

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
    row = rows[number]
    if not isinstance(row, dict):
        raise DataError(f"{where}[{number}] is not a JSON object.")
    return row


def by_key(rows: Sequence[Any], key: str, where: str) -> dict[Any, Entry]:
    """Rows by what each has once under a key.

    :raises DataError: Where one has none, or two have the same.
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
    """A name or number that others refer to; None where there is none."""
    name = row.get(key)
    return name if isinstance(name, str | int) else None


def columns_of(rows: Iterable[Any], *more: str) -> list[str]:
    """Of the first row, and more."""
    first: Any = next(iter(rows), None)
    return list(dict.fromkeys([*(first if isinstance(first, dict) else ()), *more]))


def _answer(found: dict[str, Any]) -> Any:
    if "answer_confidence" not in found:
        return found
    answer = found.get("answer")
    return sys.intern(answer) if isinstance(answer, str) and answer.strip() else found


def _shared(name: Hashable) -> str:
    return "" if name is None else f", {name!r}, as one before it"


def _lacks(document: Mapping[str, Any], key: str, fields: Sequence[str]) -> list[str]:
    """Fields of its first object; the key where there is no such list. One that is empty lacks nothing."""
    rows = list(document.values())[:1] if key == "*" else document.get(key)
    if not isinstance(rows, list) or (key == "*" and not rows):
        return [key]
    first: Any = rows[0] if rows else tuple(fields)
    missing = [field for field in fields if not isinstance(first, dict | tuple) or field not in first]
    if key == "*":  # any object has values
        return missing if len(missing) < len(fields) else [key]
    return [f"{key}[0].{field}" for field in missing]


def _named(document: Any) -> str:
    if isinstance(document, list):
        return "a list"
    if not isinstance(document, dict):
        return f"the JSON value {document!r:.40}"
    keys = [*map(str, document)]
    return f"an object with {', '.join(keys[:8])}{' …' if len(keys) > 8 else ''}" if keys else "an empty object"


def _near(document: Mapping[str, Any]) -> str:
    """The layout that least is missing of, where it is not all that is missing."""

    def missing(layout: Layout) -> float:
        lacks = layout.lacks(document)
        return sum(1 + len(layout.needs.get(lack, ())) for lack in lacks) / sum(
            1 + len(f) for f in layout.needs.values()
        )

    near = min(LAYOUTS, key=missing)
    if missing(near) == 1:
        return ""
    return f" Nearest: {near.name}, {near.told}, but {', '.join(near.lacks(document))} is missing.{near.without}"


def _expected(read: Sequence[Layout]) -> str:
    known = "".join(f"; {layout.name}, {layout.told}" for layout in read)
    return f'Read here: a list of objects, one for each row, [{{"image": …}}, …]{known}.'
