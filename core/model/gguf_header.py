"""Hold what the header of a GGUF file announces to the file's length, and have a library read it once.

Its reader takes an array of 2⁶⁰ numbers at its word, and fills the memory with what lies behind the end of the file. It
makes an array of each token besides, which takes seconds each time.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ecoflap.core.errors import ModelError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type: whole numbers and floats of 8 to 64 bits, and booleans."""

MOST_AXES, DEEPEST = 8, 4
"""The most axes of a tensor, of which ggml has 4, and the deepest that arrays lie within each other."""


class _Damaged(Exception):
    """Says what of a header cannot be, and at which byte."""


def check_gguf_header(file: Path) -> None:
    """Walk through a header, and read no weight.

    :raises ModelError: Where it is no GGUF file's, or something in it reaches beyond the file's end.
    """
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _Header(mapped).walk()
    except (_Damaged, ValueError) as error:  # an empty file cannot be mapped
        raise ModelError(f"{file} cannot be read as GGUF: {error}. The file is damaged or cut off.") from error


@contextmanager
def header_read_once() -> Iterator[None]:
    """Let transformers read the header of one file once: it does so for a configuration, a tokenizer and weights alike.

    What it read, some 150 MB with 49,152 tokens, is kept until it reads another file's, or :func:`forget_header`.
    """
    library: Any = import_module("gguf")
    usual = library.GGUFReader
    library.GGUFReader = _kept  # where transformers takes it from whenever it reads
    try:
        yield
    finally:
        library.GGUFReader = usual


def forget_header() -> None:
    """Let what was read of the last header go."""
    _reader.cache_clear()


def _kept(path: str | os.PathLike[str]) -> Any:
    found = os.stat(path)
    return _reader(os.fspath(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _reader(path: str, changed: int, size: int) -> Any:
    """Read a header.

    :param changed: When the file was last written: one that has changed since, or has another size, is read again.
    """
    return import_module("gguf.gguf_reader").GGUFReader(path)


class _Header:
    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped, self.at, self.order = mapped, 0, "<"

    def walk(self) -> None:
        if self.mapped[:4] != _MAGIC:
            raise _Damaged("it does not begin with GGUF")
        self.at = 4
        (version,) = self._take("I")
        if not version & 0xFFFF:  # it was written on a machine of the other byte order
            self.order = ">"
        tensors, values = self._take("QQ")
        self._each(values, 8 + 4, self._value)
        self._each(tensors, 8 + 4 + 4 + 8, self._tensor)

    def _take(self, form: str) -> tuple[Any, ...]:
        start = self.at
        self._skip(struct.calcsize(self.order + form))
        return struct.unpack(self.order + form, self.mapped[start : self.at])

    def _skip(self, size: int) -> None:
        if size > len(self.mapped) - self.at:
            raise _Damaged(f"at byte {self.at:,} it announces {size:,} more, and ends at {len(self.mapped):,}")
        self.at += size

    def _each(self, count: int, least: int, read: Callable[[], None]) -> None:
        """Read so many items, each of which takes at least so many bytes."""
        if count > (len(self.mapped) - self.at) // least:
            raise _Damaged(f"at byte {self.at:,} it announces {count:,} items, and ends at {len(self.mapped):,}")
        for _ in range(count):
            read()

    def _text(self) -> None:
        self._skip(*self._take("Q"))

    def _value(self) -> None:
        self._text()
        (kind,) = self._take("I")
        self._of_kind(kind, 0)

    def _of_kind(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY and depth < DEEPEST:
            inside, count = self._take("IQ")
            if inside in _SIZES:
                self._skip(count * _SIZES[inside])
            else:
                self._each(count, 8, lambda: self._of_kind(inside, depth + 1))
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise _Damaged(f"at byte {self.at:,} a value has the type {kind}, which is none")

    def _tensor(self) -> None:
        self._text()
        (axes,) = self._take("I")
        if axes > MOST_AXES:
            raise _Damaged(f"at byte {self.at:,} a tensor has {axes:,} axes")
        self._take(f"{axes}QIQ")
