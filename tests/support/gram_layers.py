"""Small layers with inputs that go together, for the tests of pruners that solve by a Gram matrix."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, eye, float64, logspace, randn

from ecoflap.core.budget.counts import Budget, Keep, Pattern
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.gram import Gram


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(features: int, seed: int = 0, tokens: int = 600, log_scale: float = 0.5) -> Tensor:
    """x = zA, its columns scaled over some decades."""
    mixing = eye(features) + 0.3 * drawn(features, features, seed=seed + 1)
    return drawn(tokens, features, seed=seed) @ mixing * logspace(-log_scale, log_scale, features)


def both_of(inputs: Tensor) -> Statistics:
    """Give the statistics that all pruners without a backward need."""
    statistics = Statistics({ColumnNorm: ColumnNorm(inputs.shape[-1]), Gram: Gram(inputs.shape[-1])})
    for statistic in statistics.values():
        statistic.add(inputs)
    return statistics


def error(inputs: Tensor, weight: Tensor, pruned: Tensor) -> float:
    """The squared output error, in float64."""
    return float((inputs.to(float64) @ (weight.to(float64) - pruned.to(float64)).T).square().sum())


def kept_by(budget: Budget, weight: Tensor) -> int:
    return budget.count if isinstance(budget, Keep) else budget.keep_of(weight.numel())


@st.composite
def layers(draw: Any) -> tuple[Tensor, Tensor, Budget]:
    """A weight, inputs and a budget: with rows and columns of zeros, dead inputs, few tokens, and all kept or none."""
    rows, columns, tokens = draw(st.integers(1, 5)), 4 * draw(st.integers(1, 4)), draw(st.integers(1, 40))
    weight = drawn(rows, columns, seed=draw(st.integers(0, 99)))
    inputs = correlated(columns, seed=draw(st.integers(0, 99)), tokens=tokens)
    weight[sorted(draw(st.sets(st.integers(0, rows - 1), max_size=2)))] = 0
    weight[:, :: draw(st.integers(1, columns + 1))] *= draw(st.sampled_from([0.0, 1.0]))
    inputs[:, sorted(draw(st.sets(st.integers(0, columns - 1), max_size=columns)))] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    counts = st.builds(Keep, st.integers(0, weight.numel()))
    patterns = st.sampled_from([Pattern(2, 4), Pattern(1, 4), Pattern(1, 2), Pattern(4, 4)])
    return weight.to(dtype), inputs, draw(counts | patterns)
