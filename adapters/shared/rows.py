"""Rows of tokens of unequal lengths as one tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def padded_rows(
    rows: Sequence[Sequence[int]], fill: int = 0
) -> tuple[Int64[Tensor, "rows longest"], Int64[Tensor, "rows longest"]]:
    """Side by side, padded on the right with ``fill`` to the longest, and a mask that is 1 where no padding is."""
    shape = len(rows), max(map(len, rows))
    padded, mask = torch.full(shape, fill, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return padded, mask
