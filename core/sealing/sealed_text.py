"""Write and read texts that end with a seal: a SHA-256 of all before it, and two bytes a line that tell what differs.

A JSON file has its seal as the last key, a YAML and an HTML file as a comment in the last line. Any program reads such
a file as before. The seal tells what was changed after it was written, by a hand or by a disk. It is no signature:
whoever edits a file can compute its seal anew.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ecoflap.core.disk.json_files import LARGEST, mapping_in, read_bytes
from ecoflap.core.disk.reading import unread
from ecoflap.core.disk.whole_files import write_whole
from ecoflap.core.errors import EcoflapError, RunError
from ecoflap.core.sealing.seals import check_seal

_SEAL = re.compile(rb"[0-9a-f]{64}-(?:[0-9a-f]{4})+")


@dataclass(frozen=True)
class _Form:
    """Says how a kind of text carries its seal.

    :param before: What stands before the seal, and after what it is about.
    :param after: What stands behind it, to the end of the file.
    :param end: The end of a text without a seal, which it takes the place of.
    """

    before: bytes
    after: bytes
    end: bytes


_FORMS: Mapping[str, _Form] = {
    ".json": _Form(b',\n "seal": "', b'"\n}\n', b"\n}"),
    ".yaml": _Form(b"\n# seal: ", b"\n", b"\n"),
    ".html": _Form(b"\n<!-- seal: ", b" -->\n", b"\n"),
}


def write_sealed_json(path: Path, content: Mapping[str, Any], *, ensure_ascii: bool = True) -> None:
    """Write a mapping, which is not empty, as JSON with a seal; whole or not at all."""
    write_sealed_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=ensure_ascii))


def write_sealed_text(path: Path, text: str) -> None:
    """Write a text with its seal, in the way of files of this name; whole or not at all.

    What is no character, as of a file's name that is not UTF-8, is written as ``\\udce9``, which JSON reads as it was.
    """
    form = _FORMS[path.suffix]
    body = text.encode(errors="backslashreplace").removesuffix(form.end)
    write_whole(path, body + form.before + _seal(body) + form.after)


def read_sealed_text(path: Path, way_out: str, refusal: type[EcoflapError] = RunError, most: int = LARGEST) -> bytes:
    """Read a text, and check every byte of it.

    :param way_out: Ends what is said of a file that is not what was written.
    :param most: Bytes of the largest that is meant.
    :return: The text without its seal.
    :raises EcoflapError: As ``refusal``, with the file and, where it can be told, the first line that differs.
    """
    try:
        raw = read_bytes(path, most)
    except OSError as error:
        raise refusal(unread(error, path, way_out)) from error
    except ValueError as error:
        raise refusal(f"{path}: {error}. {way_out}") from error
    form = _FORMS[path.suffix]
    body, before, rest = raw.rpartition(form.before)
    if not before:
        raise refusal(
            f"{path}: its last line should hold a seal, and does not: it was edited or cut off, or is of an ecoflap "
            f"before there were seals. {way_out}"
        )
    seal = rest.removesuffix(form.after)
    if not rest.endswith(form.after) or not _SEAL.fullmatch(seal):
        line = body.count(b"\n") + 2
        raise refusal(f"{path}:{line}: this line should be the last one, and hold the seal of the file. {way_out}")
    expected = _seal(body)
    check_seal(seal, expected, f"{path}:{_line(seal, expected)}", way_out, refusal)
    return body + form.end


def read_sealed_json(path: Path, way_out: str) -> dict[str, Any]:
    """Read a JSON file that holds a mapping, and check every byte of it; see :func:`read_sealed_text`."""
    return mapping_in(read_sealed_text(path, way_out), str(path), way_out, RunError)


def _seal(body: bytes) -> bytes:
    lines = "".join(sha256(line).hexdigest()[:4] for line in body.split(b"\n"))
    return f"{sha256(body).hexdigest()}-{lines}".encode()


def _line(found: bytes, expected: bytes) -> int:
    """Give the first line in which a text differs from the one that its seal was made of; the last one is the seal."""
    (whole, _, told), (whole_now, _, now) = found.partition(b"-"), expected.partition(b"-")
    if whole == whole_now:
        return len(now) // 4 + 1
    pairs = zip_longest(*([text[at : at + 4] for at in range(0, len(text), 4)] for text in (told, now)))
    differing = (number for number, (before, after) in enumerate(pairs, 1) if before != after)
    # Two bytes agree by chance once in 65,536 lines: then the seal itself is named.
    return next(differing, len(now) // 4 + 1)
