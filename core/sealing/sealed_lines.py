"""Append to and read files of JSON lines, each with a seal: a SHA-256 of the line and of the seal before it.

A line that is changed, removed, doubled or added thus shows, with its number, unless it is the last: a file without its
last line is one that is not written to its end, as a killed process leaves it. Who has to know more keeps the last seal
(:func:`last_seal`) and looks for it later (:func:`has_seal`).
"""

import errno
import json
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ecoflap.core.disk.json_files import mapping_in, read_bytes
from ecoflap.core.disk.reading import refuse_irregular, unread
from ecoflap.core.disk.whole_files import NOT_THROUGH_LINKS, sync
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.errors import RunError
from ecoflap.core.sealing.seals import check_seal

_LINE = re.compile(rb'(\{.+), "seal": "([0-9a-f]{64})"\}', re.DOTALL)
_LENGTH = len(b', "seal": ""}\n') + 64
"""Bytes that a line ends with, from its seal on."""

_WAY_OUT = "Restore the file, or delete it"


def append_line(path: Path, mapping: Mapping[str, Any]) -> None:
    """Add one line, in one write, and flush it to the disk. What does not fit is taken back.

    A last line without its newline, which is what a killed process leaves, is cut off first.

    :param mapping: What it is to hold, one key at least.
    :raises RunError: Where it cannot be written, or the last line has no seal.
    """
    with explained(path, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        as_bytes = getattr(os, "O_BINARY", 0)  # Windows would write each line's end as two bytes
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | NOT_THROUGH_LINKS | as_bytes, 0o666)
        try:
            refuse_irregular(path, descriptor)
            _cut_torn_line(path, descriptor)
            _append(descriptor, _sealed(_seal_at_end(path, descriptor), mapping))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync(path.parent)


def read_lines(path: Path, needs: Mapping[str, type] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Read the lines, each checked and without its seal; there are none where there is no file.

    A last line without its newline is left out. The file stays as it is, for another process may be writing to it.

    :param needs: What each line must hold, by key.
    :raises RunError: Where a line is not what was written, holds no JSON object, or not what it must.
    """
    return [_parsed(path, number, body, needs) for number, (body, _) in enumerate(_checked(path), 1)]


def last_seal(path: Path) -> str:
    """Give the seal of the last line, which stands for all lines; an empty text where there is none."""
    lines = _checked(path)
    return lines[-1][1] if lines else ""


def has_seal(path: Path, seal: str) -> bool:
    """Say whether the lines of which this was the last seal are still there; more may have come since."""
    return not seal or any(seal == other for _, other in _checked(path))


def _sealed(previous: str, mapping: Mapping[str, Any]) -> bytes:
    body = json.dumps(mapping, ensure_ascii=False).encode()[:-1]
    return body + f', "seal": "{_seal(previous, body)}"}}\n'.encode()


def _seal(previous: str, body: bytes) -> str:
    return sha256(f"{previous}\n".encode() + body).hexdigest()


def _checked(path: Path) -> list[tuple[bytes, str]]:
    """Give each whole line without its seal, and its seal."""
    if not os.path.lexists(path):  # a link that leads nowhere is no file without lines
        return []
    try:
        raw = read_bytes(path)
    except OSError as error:
        raise RunError(unread(error, path, f"{_WAY_OUT}.")) from error
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}. {_WAY_OUT}.") from error
    found: list[tuple[bytes, str]] = []
    previous = ""
    # What follows the last newline is empty, or torn.
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            what = "this line has no seal at its end: it was edited, or is of an ecoflap before there were seals"
            raise RunError(f"{path}:{number}: {what}. {_WAY_OUT}.")
        body, seal = match[1], match[2].decode()
        or_else = ", or one before it was removed, added or doubled"
        check_seal(seal, _seal(previous, body), f"{path}:{number}", f"{_WAY_OUT}.", or_else=or_else)
        found.append((body + b"}", seal))
        previous = seal
    return found


def _seal_at_end(path: Path, descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return ""
    os.lseek(descriptor, -min(size, _LENGTH), os.SEEK_END)
    match = re.fullmatch(rb', "seal": "([0-9a-f]{64})"\}\n', os.read(descriptor, _LENGTH))
    if match is None:
        raise RunError(f"{path}: its last line has no seal at its end, so that none can follow. {_WAY_OUT}.")
    return match[1].decode()


def _cut_torn_line(path: Path, descriptor: int) -> None:
    if os.fstat(descriptor).st_size == 0:
        return
    os.lseek(descriptor, -1, os.SEEK_END)
    if os.read(descriptor, 1) != b"\n":
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1)


def _append(descriptor: int, line: bytes) -> None:
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _parsed(path: Path, number: int, line: bytes, needs: Mapping[str, type]) -> dict[str, Any]:
    value = mapping_in(line, f"{path}:{number}", f"{_WAY_OUT}.")
    for key, wanted in needs.items():
        if not isinstance(value.get(key), wanted):
            what = f"this line has no {key}" if key not in value else f"the {key} of this line is no {wanted.__name__}"
            raise RunError(f"{path}:{number}: {what}. {_WAY_OUT}.")
    return value
