"""Which batches, and which matrices, are whose: the same answer in every process, whoever asks."""

from collections.abc import Sequence

SPANS = 4
"""Into how many spans batches are cut. Sums are taken span by span, so that their bits are the same in 1 to 4 ranks."""


def spans_of(batches: int, size: int) -> list[range]:
    """Cut batches into spans of about the same length, and not by how many processes there are, up to four of these.

    :param size: How many processes there are, at most one for each batch; from the fifth on, each has a span.
    """
    count = min(batches, max(SPANS, size))
    return [range(k * batches // count, (k + 1) * batches // count) for k in range(count)]


def spans_dealt(spans: Sequence[range], size: int) -> list[Sequence[range]]:
    """Give each process neighbouring spans, in the order of the processes."""
    return [spans[r * len(spans) // size : (r + 1) * len(spans) // size] for r in range(size)]


def owners(costs: Sequence[float], size: int) -> list[int]:
    """Choose the process that does each of several things, the dearest first to whoever has least to do so far."""
    loads, found = [0.0] * size, [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        found[number] = min(range(size), key=lambda rank: loads[rank])
        loads[found[number]] += costs[number]
    return found
