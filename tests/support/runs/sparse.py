"""Safetensors files of zeros that take no room on the disk, however large they are."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest

WIDTHS = {"F32": 4, "BF16": 2, "U8": 1}


def memory_and_swap() -> int:
    """Give the bytes that Linux holds a single mapping against, or skip the test."""
    told = Path("/proc/meminfo")
    if not told.is_file():
        pytest.skip("the system does not say how much memory it has")
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in told.read_text().splitlines()}
    return 1024 * (kilobytes["MemTotal"] + kilobytes["SwapTotal"])


def write_zeros(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write tensors of zeros, by name their type and shape, or skip the test where the disk takes no such file."""
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + WIDTHS[kind] * prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    try:
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
    except OSError as error:
        pytest.skip(f"the disk takes no such file: {error}")
    if 512 * file.stat().st_blocks > 1 << 20:
        file.unlink()
        pytest.skip("the disk has no sparse files")
