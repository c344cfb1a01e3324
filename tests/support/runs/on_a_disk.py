"""Tells whether a tensor lies in a file, as the system sees it."""

from pathlib import Path

import pytest
from torch import Tensor

MAPPED = Path("/proc/self/maps")


def lies_in_a_file(tensor: Tensor) -> bool:
    """Say whether the memory of a tensor is a mapped file of one that is kept."""
    if not MAPPED.is_file():
        pytest.skip("the system does not say what is mapped")
    for line in MAPPED.read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return ".kept-" in line
    return False
