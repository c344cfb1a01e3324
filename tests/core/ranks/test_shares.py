"""Who has which batches and matrices."""

import pytest

from ecoflap.core.ranks.shares import SPANS, owners, spans_dealt, spans_of

PAIRS = [(batches, size) for batches in (1, 2, 3, 4, 5, 7, 16, 128) for size in (1, 2, 3, 4, 5, 8) if size <= batches]


@pytest.mark.parametrize(("batches", "size"), PAIRS)
def test_each_batch_is_one_processes_and_each_process_has_one(batches, size):
    dealt = spans_dealt(spans_of(batches, size), size)
    assert [number for spans in dealt for span in spans for number in span] == list(range(batches))
    assert all(spans and all(spans) for spans in dealt)


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 5, 7, 16, 128])
def test_up_to_four_processes_cut_batches_alike(batches):
    alike = {tuple(spans_of(batches, size)) for size in range(1, SPANS + 1) if size <= batches}
    assert len(alike) == 1
    sizes = [len(span) for span in alike.pop()]
    assert max(sizes) - min(sizes) <= 1


def test_no_batches_are_no_spans():
    assert spans_of(0, 2) == []


def test_the_dearest_matrices_are_dealt_first():
    assert owners([1.0, 9.0, 2.0, 3.0, 4.0], 2) == [0, 0, 1, 1, 1]
    assert owners([5.0, 5.0], 1) == [0, 0]
