"""Reads how much is pruned: a share under ``sparsity``, or a pattern under either of two keys."""

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.errors import EcoflapError
from ecoflap.core.recipe.read_keys import KeyReader
from ecoflap.core.text.strict_yaml import KeyPath, described

MISSING = "required, and missing: a share such as 0.5, or a pattern such as 2:4."
MOST_ROUNDS = 100
SHARE = "should be a number from 0 to below 1, the share of weights to prune, or a pattern such as 2:4"


def read_budget(reader: KeyReader, written: Mapping[str, Any], path: KeyPath) -> dict[str, float | Pattern | None]:
    """Read ``sparsity`` and ``pattern`` of a recipe or of one of its towers; at most one of them is set.

    :param path: Of the mapping that has them.
    """
    sparsity, pattern = written.get("sparsity"), written.get("pattern")
    if sparsity is None and pattern is None:
        return {"sparsity": None, "pattern": None}
    of_pattern = _pattern(reader, (*path, "pattern"), pattern)
    if isinstance(sparsity, str) and ":" in sparsity:
        of_sparsity = _pattern(reader, (*path, "sparsity"), sparsity)
        if of_pattern and of_sparsity and of_pattern != of_sparsity:
            both = f"sparsity is {of_sparsity} and this is {of_pattern}. Remove one."
            reader.problems.add((*path, "pattern"), both)
        return {"sparsity": None, "pattern": of_sparsity}
    share = _share(reader, (*path, "sparsity"), sparsity)
    if of_pattern and share is not None and not math.isclose(share, of_pattern.sparsity, abs_tol=1e-9):
        both = f"{of_pattern} prunes {float(of_pattern.sparsity):g}, and sparsity is {share:g}. Remove one."
        reader.problems.add((*path, "pattern"), both)
    return {"sparsity": None if of_pattern else share, "pattern": of_pattern}


def read_rounds(reader: KeyReader, written: Any) -> int | tuple[float, ...] | None:
    """Read ``rounds``: how many there are, or the share that has gone after each."""
    if written is None:
        return None
    if _is_number(written) and isinstance(written, int) and 1 <= written <= MOST_ROUNDS:
        return int(written)
    if isinstance(written, (list, tuple)) and written and all(_is_number(one) and 0 < one < 1 for one in written):
        shares = tuple(map(float, written))
        if len(shares) <= MOST_ROUNDS and all(one < other for one, other in pairwise(shares)):
            return shares
    given = f"{list(written)}" if isinstance(written, (list, tuple)) else described(written)
    reader.problems.add(
        ("rounds",),
        f"should be a number of rounds from 1 to {MOST_ROUNDS}, or a list of at most as many shares, each larger than "
        f"the one before, such as [0.3, 0.45, 0.6], not {given}.",
    )
    return None


def _is_number(written: Any) -> bool:
    return isinstance(written, (int, float)) and not isinstance(written, bool)


def is_patterned(fields: Mapping[str, Any]) -> bool:
    """Say whether a recipe as a whole asks for a pattern, which leaves nothing to score or to allocate."""
    return fields.get("pattern") is not None


def _share(reader: KeyReader, path: KeyPath, written: Any) -> float | None:
    if written is None:
        return None
    if _is_number(written) and 0 <= written < 1:
        return float(written)
    reader.problems.add(path, f"{SHARE}, not {described(written)}.{_meant_share(written)}")
    return None


def _pattern(reader: KeyReader, path: KeyPath, written: Any) -> Pattern | None:
    """Read ``n:m``, where n weights of every m stay."""
    if written is None:
        return None
    try:
        return Pattern.parse(str(written))
    except EcoflapError as error:
        reader.problems.add(path, f"{error}.")
        return None


def _meant_share(written: Any) -> str:
    """Say what a percentage was meant to be."""
    percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(written))
    if not percent:
        return ""
    value = float(percent[1])
    share = value / 100 if percent[2] or value >= 2 else value
    return f" Did you mean {share:g}?" if share < 1 else ""
