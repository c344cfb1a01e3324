"""What scorers that look at statistics of blocks hold, counted by hand of a pico LLaMA."""

import pytest
import torch
from held_tensors import Held

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.plugins.metrics.magnitude import Magnitude
from ecoflap.plugins.metrics.magnitude_gradient import MagnitudeGradient
from ecoflap.plugins.metrics.optimal_brain_surgeon import OptimalBrainSurgeon
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.hill import Hill, eigenvalues
from ecoflap.plugins.scorers.local_metric import LocalMetric
from ecoflap.plugins.scorers.outlier_share import OutlierShare
from ecoflap.plugins.scorers.sensitivity import Sensitivity
from ecoflap.plugins.scorers.weight_metric import WeightMetric

WAITING = 512
"""Tokens that a Gram matrix lets wait before it adds them together."""


@pytest.fixture
def model(pico_llama):
    return pico_llama()


@pytest.fixture
def anatomy(model):
    adapter = LlamaAdapter()
    return Anatomy.of(adapter.towers(model), adapter.layers)


@pytest.fixture
def shapes(model):
    """Outputs and inputs of each matrix of a block; all blocks are alike."""
    return [tuple(one.weight.shape) for one in model.model.layers[0].modules() if hasattr(one, "in_features")]


def test_of_curves_by_a_pruner_that_solves(anatomy, shapes):
    """Gram matrices, three more of the layer that takes most and seven times its weights, and the block's weights."""
    assert len(shapes) == 7
    grams = sum(inputs**2 + WAITING * inputs for _, inputs in shapes)
    solving = max(3 * inputs**2 + 7 * outputs * inputs for outputs, inputs in shapes)
    weights = sum(outputs * inputs for outputs, inputs in shapes)
    found = Sensitivity(prune=SparseGPT()).held_numbers(anatomy)
    assert found == pytest.approx(grams + max(grams, solving) + weights, rel=0.01)


def test_of_curves_by_norms_of_columns_it_is_what_compares_weights_beside_them(anatomy, shapes):
    """Four times the layer that takes most, while it is pruned."""
    weights, largest = (reduce(outputs * inputs for outputs, inputs in shapes) for reduce in (sum, max))
    least = weights + 4 * largest
    assert least < Sensitivity(prune=Wanda()).held_numbers(anatomy) < 1.2 * least


def test_of_shares_of_outliers_it_is_about_what_is_held(model, anatomy, monkeypatch):
    """Beside what is held while the block's inputs are summed, which the plan counts by itself."""
    ids = torch.arange(16).reshape(2, 8)
    replay = Replay(model.bfloat16(), LlamaAdapter(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    layers, held, sums = [layer for _, layer in anatomy.layers()], Held(), []
    for index in range(len(replay.blocks)):
        sums.append(replay.run(index, (ColumnNorm,)))
        replay.advance(index)
    monkeypatch.setattr(replay, "run", lambda index, needs: sums[index])
    monkeypatch.setattr(replay, "advance", lambda index: None)
    with held:
        assert dict(OutlierShare()(replay, layers))
    assert 0.5 * held.most <= 4 * OutlierShare().held_numbers(anatomy) <= 2 * held.most


def test_of_spectra_it_is_about_what_is_held(anatomy, shapes):
    """Of a matrix that is larger than what a histogram takes."""
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Held() as held:
        eigenvalues(weight.float())
    assert held.most == pytest.approx(2 * 4 * weight.numel(), rel=0.3)
    assert Hill().held_numbers(anatomy) == 2 * max(outputs * inputs for outputs, inputs in shapes)


@pytest.mark.parametrize("scorer", [LocalMetric, WeightMetric])
def test_of_metrics(anatomy, shapes, scorer):
    grams = sum(inputs**2 + WAITING * inputs for _, inputs in shapes)
    values = max(outputs * inputs for outputs, inputs in shapes)
    surgeon = max(2 * inputs**2 + 3 * outputs * inputs for outputs, inputs in shapes)
    found = scorer(metric=OptimalBrainSurgeon()).held_numbers(anatomy)
    assert found == pytest.approx(grams + max(grams, surgeon), rel=0.01)
    assert scorer(metric=Magnitude()).held_numbers(anatomy) == 2 * values
    # Sums of the loss' gradient lie with the record, and are counted there.
    assert scorer(metric=MagnitudeGradient()).held_numbers(anatomy) == 2 * values
    assert scorer(metric=MagnitudeGradient()).recorded_numbers(anatomy) == sum(one.size for _, one in anatomy.layers())
