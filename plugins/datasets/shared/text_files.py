"""Text files of data are read as text or as lines of JSON, and what is wrong with them is said in one way."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecoflap.core.disk.json_files import doubled_keys
from ecoflap.core.errors import DataError, nearest

_ESCAPES = re.compile(r"\\[^u]|\\ud[89ab]..\\ud[c-f]..|(\\ud[89a-f]..)", re.IGNORECASE)
"""What JSON escapes: a single character, one of two halves, and as the group a half that stands alone."""
LONGEST_ROW = 1_000_000
"""Bytes of the longest line that is looked at to tell a file of rows from one that is a single JSON value."""
LARGEST = 4_000_000_000
"""Bytes of a text that is read, which is held in memory whole; a few of ``.gz`` may unpack to any number."""

_PIECE = 2**22
"""Bytes that are read at a time: Python makes room at once for as many as it is asked for."""


def read_text(file: Path) -> str:
    """Read a file, which may be ``.gz``, as UTF-8 text. A byte order mark is dropped.

    :raises DataError: Where it cannot be read, is larger than what is read at all, or is no such text.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            raw = bytearray()
            while len(raw) <= LARGEST and (piece := opened.read(_PIECE)):
                raw += piece
        if len(raw) > LARGEST:
            raise DataError(f"{file} holds more than {LARGEST:,} bytes of text. Divide it into several files.")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line} cannot be read as UTF-8 text: {error}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from error


def filled_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank, with its number from 1.

    A line ends at a line feed alone. ``splitlines`` would also split inside a string of JSON, at U+2028.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line, with the line's number.

    :raises DataError: With the line that is no JSON object.
    """
    for number, line in filled_lines(read_text(file)):
        try:
            found = json.loads(line)
        except RecursionError as error:
            raise DataError(f"{file}:{number} is nested too deeply.") from error
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {error}. One object a line is expected.") from error
        refuse_halves(line, file, number)
        if isinstance(found, list):
            raise DataError(f"{file}:{number} is not a JSON object, but a list: put each object on a line of its own.")
        row = json_object(found, f"{file}:{number}")
        # Only where there are more colons than keys: to look takes ten times as long as to read.
        if line.count(":") > len(row) and (doubled := doubled_keys(line)):
            raise DataError(f"{file}:{number} has {doubled[0]!r} more than once, and the last would be taken.")
        yield number, row


def refuse_halves(text: str, file: Path, first: int = 1) -> None:
    """Refuse JSON in which a character is cut in two, as by who keeps so many of each text: no tokenizer reads that.

    :param text: The JSON.
    :param first: The number of its first line in the file.
    """
    half = next((escape for escape in _ESCAPES.finditer(text) if escape[1]), None)
    if half is not None:
        line = first + text.count("\n", 0, half.start())
        raise DataError(
            f"{file}:{line} holds {half[1]}, half of a character, as of an emoji that was cut in two. Write "
            f"all of it, or leave it out."
        )


def is_of_lines(file: Path) -> bool:
    """Say whether the first line of a file is a whole JSON object, and another line follows: then it is no JSON."""
    try:
        with file.open("rb") as opened:
            first, second = opened.readline(LONGEST_ROW), opened.readline(LONGEST_ROW)
        return bool(second.strip()) and isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except (OSError, ValueError, RecursionError):  # what is wrong with it is told where it is read
        return False


def json_object(value: Any, where: str) -> dict[str, Any]:
    """Refuse what is not a JSON object, with its place."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object.")
    return value


def missing_path(path: Path) -> str:
    """Say that a path is not there, with the nearest name beside it."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} does not exist.{nearest(path.name, beside)}"


@contextmanager
def named_problems(name: str) -> Iterator[None]:
    """Put the name of a dataset, or of its parameter, before each problem of a :class:`DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(*(f"{name}: {problem}" for problem in error.problems)) from error
