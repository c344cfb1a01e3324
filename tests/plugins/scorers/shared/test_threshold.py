"""One threshold against a sort of all weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ecoflap import Layer
from ecoflap.core.errors import ModelError
from ecoflap.plugins.scorers.shared.threshold import counts_above

FEW = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0000001, 3e-45, 1e30])
VALUES = st.lists(st.lists(FEW | st.floats(0, 10, width=32), min_size=1, max_size=30), min_size=1, max_size=5)


def layers_of(rows):
    """A layer of one output for each list of weights."""
    layers = [Layer(f"l{i}", nn.Linear(len(row), 1)) for i, row in enumerate(rows)]
    for layer, row in zip(layers, rows, strict=True):
        layer.weight.data.copy_(torch.tensor([row]))
    return layers


@settings(max_examples=100, deadline=None)
@given(VALUES, st.floats(0, 1))
def test_the_largest_of_all_are_counted_where_they_are(rows, share):
    rows = [np.array(row, dtype=np.float32) + np.float32(0) for row in rows]
    total = sum(map(len, rows))
    keep = int(share * total)
    counts = counts_above(layers_of([row.tolist() for row in rows]), lambda layer: layer.weight.data, keep)
    assert sum(counts.values()) == keep
    threshold = np.sort(np.concatenate(rows))[::-1][max(keep, 1) - 1]
    above, ties = ([int(test(row, threshold).sum()) for row in rows] for test in (np.greater, np.equal))
    for i, count in enumerate(counts.values()):
        share_of_ties = (keep - sum(above)) * ties[i] / sum(ties) if keep else 0
        assert abs(count - above[i] * bool(keep) - share_of_ties) < 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_what_cannot_be_compared_is_told_by_layer(wrong):
    with pytest.raises(ModelError, match="l1: its weights or gradients are not finite"):
        counts_above(layers_of([[1.0], [wrong]]), lambda layer: layer.weight.data, 1)
