from itertools import product

import pytest
import torch
from gram_layers import both_of, correlated, drawn, error, kept_by, layers
from hypothesis import given, settings
from one_layer import PLACE

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.budget.select import select
from ecoflap.core.contracts.records import Pruned
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.swap import Swap, ecoflap_register_pruners
from ecoflap.plugins.pruners.wanda import Wanda


def best_swap(x, row, kept, m):
    """Every pair of one row, each error computed anew in float64: the change, what comes back, and what goes."""
    now = error(x, row[None], (row * kept)[None])
    found = (0.0, None, None)
    for back, gone in product((~kept).nonzero()[:, 0].tolist(), kept.nonzero()[:, 0].tolist()):
        if m is None or back // m == gone // m:
            other = kept.clone()
            other[back], other[gone] = True, False
            found = min(found, (error(x, row[None], (row * other)[None]) - now, back, gone), key=lambda one: one[0])
    return found


def slowly(x, weight, mask, swaps, m=None):
    mask = mask.clone()
    for row, kept in zip(weight, mask, strict=True):
        for _ in range(swaps):
            change, back, gone = best_swap(x, row, kept, m)
            if back is None or change > -1e-5 * float(row.square() @ x.square().sum(0)):
                break
            kept[back], kept[gone] = True, False
    return mask


def test_is_offered():
    assert ecoflap_register_pruners() == {"swap": Swap}
    assert Swap() == Swap(inner=Wanda(), swaps=30, candidates=8)
    assert Swap().needs == (ColumnNorm, Gram)
    assert Swap(Magnitude()).needs == Swap(SparseGPT()).needs == (Gram,)


@pytest.mark.parametrize("candidates", [2, None])
@pytest.mark.parametrize("budget", [Keep(6 * 4), Pattern(1, 4)], ids=str)
def test_what_was_zero_does_not_come_back(budget, candidates):
    weight, x = drawn(6, 12), correlated(12)
    left = drawn(6, 12, seed=1) > -0.4
    first = Magnitude("row")(weight * left, both_of(x), budget, PLACE)
    swapped = Swap(Magnitude("row"), candidates=candidates)(weight * left, both_of(x), budget, PLACE)
    came = swapped.mask & ~first.mask
    assert bool(came.any())
    assert not bool((came & ~left).any())


@pytest.mark.parametrize("swaps", [1, 2, 30])
@pytest.mark.parametrize(("budget", "m"), [(Keep(6 * 5 + 2), None), (Pattern(2, 4), 4), (Pattern(3, 6), 6)], ids=str)
def test_each_swap_is_the_best_of_all_pairs(budget, m, swaps):
    weight, x = drawn(6, 12), correlated(12)
    first = Magnitude("row")(weight, both_of(x), budget, PLACE)
    mask, after, notes, _ = Swap(Magnitude("row"), swaps, candidates=None)(weight, both_of(x), budget, PLACE)
    expected = slowly(x, weight, first.mask, swaps, m)
    assert not torch.equal(mask, first.mask)
    assert torch.equal(mask, expected)
    assert torch.equal(after, torch.where(mask, weight, 0))
    assert notes == ()


def test_few_candidates_come_as_far():
    weight, x = drawn(40, 64), correlated(64)
    first, few, all_ = (
        error(x, weight, pruner(weight, both_of(x), Keep(40 * 26), PLACE).weight)
        for pruner in (Wanda(), Swap(), Swap(candidates=None))
    )
    assert all_ < 0.9 * first
    assert few < first - 0.95 * (first - all_)


def test_it_goes_on_from_the_weights_that_are_there():
    """A kept weight counts with the value it has, and one that comes back with its dense one."""
    weight, x = drawn(12, 32), correlated(32)
    before = SparseGPT()(weight, both_of(x), Keep(150), PLACE)
    mask, after, notes, _ = Swap(SparseGPT())(weight, both_of(x), Keep(150), PLACE)
    stayed, came = mask & before.mask, mask & ~before.mask
    assert came.any()
    assert torch.equal(after[stayed], before.weight[stayed])
    assert torch.equal(after[came], weight[came])
    assert error(x, weight, after) < 0.97 * error(x, weight, before.weight)
    assert notes == ()


def test_a_first_swap_beside_moved_weights_is_the_best_of_all_pairs():
    weight, x = drawn(1, 10), correlated(10)
    before = SparseGPT()(weight, both_of(x), Keep(5), PLACE)
    errors = {}
    for back, gone in product((~before.mask[0]).nonzero()[:, 0].tolist(), before.mask[0].nonzero()[:, 0].tolist()):
        other = before.weight.clone()
        other[0, back], other[0, gone] = weight[0, back], 0
        errors[back, gone] = error(x, weight, other)
    (back, gone), least = min(errors.items(), key=lambda item: item[1])
    after = Swap(SparseGPT(), swaps=1, candidates=None)(weight, both_of(x), Keep(5), PLACE).weight
    if least < error(x, weight, before.weight):
        assert after[0, back] == weight[0, back]
        assert after[0, gone] == 0
    assert error(x, weight, after) == pytest.approx(min(least, error(x, weight, before.weight)), rel=1e-4)


@settings(max_examples=80)
@given(layers())
def test_counts_of_rows_and_runs_stay_and_no_error_grows(layer):
    weight, x, budget = layer
    for inner in (Wanda(), Magnitude()):
        before = inner(weight, both_of(x), budget, PLACE)
        mask, after, *_ = Swap(inner)(weight, both_of(x), budget, PLACE)
        assert mask.sum() == kept_by(budget, weight)
        assert torch.equal(mask.sum(1), before.mask.sum(1))
        if isinstance(budget, Pattern):
            assert (mask.view(-1, budget.m).sum(1) == budget.n).all()
        assert torch.equal(after, torch.where(mask, weight, 0))
        assert not after.signbit()[~mask].any()
        assert error(x, weight, after) <= error(x, weight, before.weight) * (1 + 1e-4) + 1e-6


class Noting:
    """Says something, and keeps the first weights."""

    needs = ()

    def __call__(self, weight, seen, budget, layer):
        mask = select(-torch.arange(weight.numel(), dtype=torch.float32).reshape(weight.shape), budget)
        return Pruned(mask, weight * mask, ("something of the inner one",))


def test_notes_of_the_inner_pruner_are_carried():
    assert Swap(Noting())(drawn(4, 8), both_of(correlated(8)), Keep(16), PLACE).notes == ("something of the inner one",)


@pytest.mark.parametrize(
    ("parameters", "said"), [({"swaps": 0}, "swaps is 0"), ({"candidates": 0}, "candidates is 0; at least 1 is needed")]
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        Swap(**parameters)
