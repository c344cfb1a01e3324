"""Say in which type the weights of a safetensors file are, by its header."""

from collections import Counter
from pathlib import Path

import torch

from ecoflap.core.disk.safetensors_header import DTYPES, places_in, why_not_whole


def stored_type(file: Path) -> torch.dtype | None:
    """Give the floating-point type that takes most of a file; None of one that has none, or cannot be read.

    What is wrong with a file is told by what reads it.
    """
    if why_not_whole(file) is not None:
        return None
    taken: Counter[torch.dtype] = Counter()
    with file.open("rb") as stream:
        for kind, _, begin, end in places_in(stream).values():
            if kind in DTYPES and DTYPES[kind].is_floating_point:
                taken[DTYPES[kind]] += end - begin
    return max(taken, key=lambda dtype: taken[dtype], default=None)
