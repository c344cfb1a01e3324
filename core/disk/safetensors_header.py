"""Lay out a safetensors file: the order of its tensors, and the header that says where each is; and read that again."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ecoflap.core.disk.json_files import json_value
from ecoflap.core.disk.reading import open_file, unread

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' own names of dtypes."""

_ALIGNED = 64
"""Where a file is mapped tensors begin at a multiple of so many bytes, as torch's own memory does: with AVX2, MKL adds
up a row otherwise where a matrix begins elsewhere. Safetensors asks for 8."""

_ANEW = "Fetch or write it anew."

NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredAs:
    """Says as what a tensor is stored."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * self.dtype.itemsize


def in_file_order(tensors: Mapping[str, StoredAs]) -> list[str]:
    """Give the names of tensors in the order in which a file has their bytes.

    A reader views bytes as their dtype where they lie, so the widest come first and all are aligned.
    """
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def starts_of(tensors: Mapping[str, StoredAs]) -> dict[str, int]:
    """Give where the bytes of each tensor begin, counted from the end of the header, in the order of the file."""
    starts: dict[str, int] = {}
    end = 0
    for name in in_file_order(tensors):
        starts[name], end = end, end + tensors[name].nbytes
    return starts


def header_of(tensors: Mapping[str, StoredAs], metadata: Mapping[str, str]) -> bytes:
    """Make the bytes that a file of these tensors begins with.

    How many they are depends on the names, types and shapes of the tensors and on the length of the metadata.

    :param metadata: The header's ``__metadata__``.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, start in starts_of(tensors).items():
        stored = tensors[name]
        offsets = [start, start + stored.nbytes]
        header[name] = {"dtype": NAMES[stored.dtype], "shape": list(stored.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def places_in(stream: BinaryIO) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Read each tensor's dtype, as safetensors names it, its shape, and where in the file it begins and ends.

    The header is taken to be sound, as the library has found it where a file was opened by it.
    """
    size = int.from_bytes(stream.read(8), "little")
    header = json_value(stream.read(size))
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        places[name] = entry["dtype"], tuple(entry["shape"]), begin, end
    return places


def why_not_whole(file: Path) -> str | None:
    """Say in two sentences that a file has other bytes than its header speaks of; None where it has those.

    Only the header is read; the file may come from anybody.
    """
    try:
        with open_file(file) as stream:
            there = os.fstat(stream.fileno()).st_size
            ends = _ends_in(stream, there)
    except OSError as error:
        return unread(error, file, _ANEW)
    if ends is None:
        return f"{file} is cut off, or no safetensors file: its header cannot be read. {_ANEW}"
    if there == ends:
        return None
    how = "cut off" if there < ends else "damaged"
    return f"{file} is {how}: it has {there:,} bytes, and its header speaks of {ends:,}. {_ANEW}"


def _ends_in(stream: BinaryIO, most: int) -> int | None:
    """Give how many bytes a file has by its header; None where that is none, or longer than the file."""
    header = int.from_bytes(stream.read(8), "little")
    if not 0 < header <= most - 8:
        return None
    stream.seek(0)
    try:
        return max((end for *_, end in places_in(stream).values()), default=8 + header)
    except (AttributeError, KeyError, TypeError, ValueError):  # what reading it raises where it is of another form
        return None
