"""Magnitude against what it is defined as."""

import pytest

from ecoflap.plugins.scorers.magnitude import MagnitudeScore


def test_magnitude_is_the_sum_of_absolute_weights(replay):
    layers = [layer for _, layer in replay.anatomy.layers()]
    for (name, score), layer in zip(MagnitudeScore()(replay, layers), layers, strict=True):
        assert name == layer.name
        assert score == pytest.approx(float(layer.weight.data.double().abs().sum()), rel=1e-6)
