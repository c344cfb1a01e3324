"""Each metric against its formula, one weight at a time in float64."""

import math

import pytest
import torch
from gram_layers import both_of, correlated, drawn
from one_layer import PLACE

from ecoflap.core.budget.counts import Keep
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.loss_gradient import LossGradient
from ecoflap.core.statistics.regional_gradient import RegionalGradient
from ecoflap.plugins.metrics import (
    magnitude,
    magnitude_gradient,
    multiflow,
    optimal_brain_surgeon,
    ria,
    wanda,
    wanda_plus_plus,
)
from ecoflap.plugins.pruners.sparsegpt import SparseGPT


@pytest.fixture
def weight():
    return drawn(5, 7)


@pytest.fixture
def x():
    return correlated(7, tokens=20)


@pytest.fixture
def gradients():
    return [drawn(5, 7, seed=seed) for seed in (3, 4, 5)]


@pytest.fixture
def found(x, gradients):
    statistics = Statistics({kind: kind(7) for kind in (ColumnNorm, RegionalGradient, LossGradient)})
    statistics[ColumnNorm].add(x)
    for gradient in gradients:
        statistics[RegionalGradient].add_gradient(gradient)
        statistics[LossGradient].add_loss_gradient(gradient)
    return statistics


def holds(values, formula):
    expected = [[formula(i, j) for j in range(7)] for i in range(5)]
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def norm(x, j):
    return math.sqrt(sum(float(value) ** 2 for value in x[:, j]))


def test_are_offered():
    assert magnitude.ecoflap_register_metrics() == {"magnitude": magnitude.Magnitude}
    assert magnitude_gradient.ecoflap_register_metrics() == {"magnitude_gradient": magnitude_gradient.MagnitudeGradient}
    assert multiflow.ecoflap_register_metrics() == {"multiflow": multiflow.Multiflow}
    surgeon = optimal_brain_surgeon.OptimalBrainSurgeon
    assert optimal_brain_surgeon.ecoflap_register_metrics() == {"optimal_brain_surgeon": surgeon}
    assert wanda.ecoflap_register_metrics() == {"wanda": wanda.Wanda}
    assert ria.ecoflap_register_metrics() == {"ria": ria.Ria}
    assert wanda_plus_plus.ecoflap_register_metrics() == {"wanda_plus_plus": wanda_plus_plus.WandaPlusPlus}
    assert (wanda.Wanda().alpha, ria.Ria().alpha, wanda_plus_plus.WandaPlusPlus().alpha) == (1.0, 0.5, 100.0)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.3])
def test_optimal_brain_surgeon_is_the_error_that_the_rest_of_the_row_cannot_make_up_for(weight, x, damping):
    """Least squares in float64: one weight goes, those behind it take any values, and those before it stay."""
    x = x.double()
    h = x.T @ x
    h += damping * h.diagonal().mean() * torch.eye(7)
    expected = torch.empty(5, 7, dtype=torch.float64)
    for i in range(5):
        for j in range(7):
            behind, gone = h[j + 1 :, j + 1 :], h[j + 1 :, j] * float(weight[i, j])
            best = torch.linalg.lstsq(behind, gone[:, None]).solution[:, 0] if j < 6 else gone
            change = torch.cat([torch.zeros(j), -weight[i, j : j + 1], best]).double()
            expected[i, j] = change @ h @ change
    values = optimal_brain_surgeon.OptimalBrainSurgeon(damping)(weight, both_of(x.float()))
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-7)


def test_optimal_brain_surgeon_by_the_papers_three_steps(weight, x):
    """H is factorised, inverted and factorised again, as in SparseGPT; W²/diag(U)² is ECoFLaP's local score with it."""
    h = x.double().T @ x.double()
    h += 0.01 * h.diagonal().mean() * torch.eye(7)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    expected = weight.double().square() / u.diagonal().square()
    torch.testing.assert_close(
        optimal_brain_surgeon.OptimalBrainSurgeon()(weight, both_of(x)).double(), expected, rtol=1e-4, atol=0
    )


def test_optimal_brain_surgeon_of_a_dead_input_is_zero(weight, x):
    x[:, 2] = 0
    values = optimal_brain_surgeon.OptimalBrainSurgeon()(weight, both_of(x))
    assert not values[:, 2].any()
    assert bool((values[:, [0, 1, 3, 4, 5, 6]] > 0).all())


def test_sparsegpt_chooses_its_first_columns_by_optimal_brain_surgeon(weight, x):
    seen = both_of(x)
    by = SparseGPT(block_size=1)(weight, seen, Keep(14), PLACE).mask[:, 0]
    values = optimal_brain_surgeon.OptimalBrainSurgeon()(weight, seen)[:, 0]
    assert sorted(by.nonzero()[:, 0].tolist()) == sorted(values.topk(int(by.sum())).indices.tolist())


@pytest.mark.parametrize("damping", [-0.1, math.inf])
def test_a_damping_that_is_no_share_is_refused(damping):
    with pytest.raises(EcoflapError, match="damping is"):
        optimal_brain_surgeon.OptimalBrainSurgeon(damping)


def test_magnitude(weight):
    assert torch.equal(magnitude.Magnitude()(weight, Statistics()), weight.abs())


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0, 2.0])
def test_wanda(weight, x, found, alpha):
    holds(wanda.Wanda(alpha)(weight, found), lambda i, j: abs(float(weight[i, j])) * norm(x, j) ** alpha)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_ria(weight, x, found, alpha):
    def formula(i, j):
        size = abs(float(weight[i, j]))
        row = sum(abs(float(value)) for value in weight[i])
        column = sum(abs(float(value)) for value in weight[:, j])
        return (size / row + size / column) * norm(x, j) ** alpha

    holds(ria.Ria(alpha)(weight, found), formula)


def test_ria_of_rows_and_columns_of_zeros(weight, found):
    weight[2], weight[:, 4] = 0, 0
    values = ria.Ria()(weight, found)
    assert values.isfinite().all()
    assert not values[2].any()
    assert not values[:, 4].any()
    assert values[0, 0] > 0


@pytest.mark.parametrize("alpha", [100.0, 0.0])
def test_wanda_plus_plus(weight, x, gradients, found, alpha):
    def formula(i, j):
        mean = math.sqrt(sum(float(one[i, j]) ** 2 for one in gradients) / 3)
        return (alpha * mean + norm(x, j)) * abs(float(weight[i, j]))

    holds(wanda_plus_plus.WandaPlusPlus(alpha)(weight, found), formula)


def test_multiflow(weight, x, found):
    """Its weights are those of the formula but for one factor, which is the same for the whole layer."""

    def flow(i, j):
        return abs(float(weight[i, j])) * norm(x, j)

    def formula(i, j):
        output, given = sum(flow(i, k) for k in range(7)) / 7, sum(flow(k, j) for k in range(5)) / 5
        return abs(float(weight[i, j])) * output * given

    values = multiflow.Multiflow()(weight, found)
    holds(values * (formula(2, 3) / float(values[2, 3])), formula)


def test_multiflow_of_large_numbers_and_of_none(weight, x):
    statistics = Statistics({ColumnNorm: ColumnNorm(7)})
    assert not multiflow.Multiflow()(weight, statistics).any()
    statistics[ColumnNorm].add(1e15 * x)
    large = multiflow.Multiflow()(1e4 * weight, statistics)
    assert large.isfinite().all()
    assert large.amax() > 0


def test_magnitude_gradient(weight, gradients, found):
    def formula(i, j):
        return abs(float(weight[i, j])) * sum(abs(float(one[i, j])) for one in gradients) / 3

    holds(magnitude_gradient.MagnitudeGradient()(weight, found), formula)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_other_dtypes_and_the_weight_is_left_alone(weight, found, dtype):
    weight = weight.to(dtype)
    before = weight.clone()
    metrics = (magnitude.Magnitude(), wanda.Wanda(), ria.Ria(), wanda_plus_plus.WandaPlusPlus())
    for metric in (*metrics, magnitude_gradient.MagnitudeGradient(), multiflow.Multiflow()):
        assert metric(weight, found).isfinite().all()
        assert torch.equal(weight, before)


@pytest.mark.parametrize("metric", [wanda.Wanda, ria.Ria, wanda_plus_plus.WandaPlusPlus])
@pytest.mark.parametrize("alpha", [-0.5, float("nan"), float("inf")])
def test_powers_that_cannot_be(metric, alpha):
    with pytest.raises(EcoflapError, match=f"alpha is {alpha}"):
        metric(alpha)
