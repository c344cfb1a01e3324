"""Puts together what pruners that mend another one's choice, such as ``refit``, came to in the layers of a block."""

from collections.abc import Iterator, Sequence
from statistics import mean

from ecoflap.core.contracts.events import LayerPruned, Refined
from ecoflap.core.contracts.records import Mended


def mended_in(block: str, layers: Sequence[tuple[LayerPruned, tuple[Mended, ...]]]) -> Iterator[Refined]:
    """Yield what each that mends did to a block: the mean error of those layers that it looked at, before and after.

    The error after is that of the weights that stay, the inner pruner's where it found none that are better.

    :param layers: How each was pruned, and what was mended of it, the innermost first.
    """
    for by in dict.fromkeys(one.by for _, mended in layers for one in mended):
        found = [one for _, mended in layers for one in mended if one.by == by]
        seconds = sum(done.seconds for done, mended in layers if any(one.by == by for one in mended))
        before, after = (one.before for one in found), (one.after if one.is_kept else one.before for one in found)
        is_kept = any(one.is_kept for one in found)
        yield Refined(block, by, {"training": mean(before)}, {"training": mean(after)}, is_kept, seconds, None)
