"""Read JSON, which may come from anybody, within limits of size and depth; a run's as mappings, or refused by name."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from ecoflap.core.disk.reading import open_file
from ecoflap.core.errors import EcoflapError, RunError

LARGEST = 64_000_000
"""The most bytes of a JSON file: a plan with 18,000 experts has about three million."""
_PIECE = 1 << 20
"""Bytes that are read at a time."""


def json_value(text: str | bytes) -> Any:
    """Give the value of a JSON text. It may be 200 deep, which is pydantic's limit; more would exhaust Python's stack.

    :raises ValueError: Where it is no JSON, or deeper.
    """
    return from_json(text)


def doubled_keys(text: str | bytes) -> list[str]:
    """List the keys that a mapping in a JSON text has more than once; readers take the last of them without a word.

    :param text: JSON no deeper than :func:`json_value` takes.
    """
    found: dict[str, None] = {}

    def seen(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(key for key, _ in pairs)
        found.update(dict.fromkeys(key for key, count in counts.items() if count > 1))

    json.loads(text, object_pairs_hook=seen, parse_int=str)  # of any length
    return list(found)


def mapping_in(raw: bytes, where: str, way_out: str, refusal: type[EcoflapError] = RunError) -> dict[str, Any]:
    """Give the mapping that a JSON text holds.

    :param where: The text's place, for the message.
    :param way_out: Ends the message.
    :raises EcoflapError: As ``refusal``, where it is no JSON, or holds something else.
    """
    try:
        content = json_value(raw)
    except ValueError as error:
        raise refusal(f"{where}: this is not JSON: {error}. {way_out}") from error
    if not isinstance(content, dict):
        raise refusal(f"{where}: it should hold a mapping. {way_out}")
    return content


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a file, unless it is larger than any that is meant.

    :raises OSError: Where it is not there, may not be read, or is no file.
    :raises ValueError: Where it is larger.
    """
    raw = bytearray()
    with open_file(path) as file:
        while len(raw) <= most and (piece := file.read(_PIECE)):  # in one read the most would be asked for at once
            raw += piece
    if len(raw) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return bytes(raw)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    :raises RunError: Where it cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json_value(read_bytes(path))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a mapping")
    return content
