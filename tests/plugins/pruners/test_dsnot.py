import pytest
import torch
from gram_layers import correlated, drawn, error, kept_by, layers
from hypothesis import given, settings
from one_layer import PLACE

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.budget.select import select
from ecoflap.core.contracts.records import Pruned, Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.dsnot import ColumnMoments, Dsnot, ecoflap_register_pruners
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda


def leaning(features, seed=0, tokens=600):
    """Inputs whose means are not zero, some of them below."""
    return correlated(features, seed=seed, tokens=tokens) + drawn(features, seed=seed + 50)


def all_of(x):
    statistics = Statistics({kind: kind(x.shape[-1]) for kind in (ColumnNorm, ColumnMoments, Gram)})
    for statistic in statistics.values():
        statistic.add(x)
    return statistics


def expected_error(x, weight, pruned):
    """Of each row, over 2048 tokens, in float64."""
    return 2048 * (weight.double() - pruned.double()) @ x.double().mean(0)


def slowly(x, weight, before, cycles, m=None, same_sign=False, threshold=0.1):
    """The paper's two criteria row by row, each time over all weights that have not been moved."""
    mean, variance, norm = 2048 * x.double().mean(0), x.double().var(0, unbiased=False), x.double().norm(dim=0)
    mask = before.mask.clone()
    for row, kept_values, kept in zip(weight.double(), before.weight.double(), mask, strict=True):
        moved, columns, first = set(), range(len(row)), kept.clone()
        e = begun = float(((row - kept_values) * mean).sum())
        passed = set()
        for _ in range(cycles):
            if abs(e) <= threshold:
                break
            sign = 1 if e > 0 else -1
            back = [j for j in columns if not first[j] and j not in moved | passed and sign * row[j] * mean[j] > 0]
            if not back:
                break
            come = max(back, key=lambda j: abs(float(row[j] * mean[j] / variance[j])))
            gone = [j for j in columns if first[j] and j not in moved]
            if m is None:
                gone = [j for j in gone if sign * kept_values[j] * mean[j] < 0]
                if not gone:
                    break
            else:
                gone = [j for j in gone if j // m == come // m]
                if not gone:
                    passed.add(come)
                    continue
            go = min(gone, key=lambda j: abs(float(kept_values[j] * norm[j])))
            after = e - float(row[come] * mean[come]) + float(kept_values[go] * mean[go])
            if (same_sign or m is not None) and after * begun <= 0:
                break
            e = after
            kept[come], kept[go] = True, False
            moved |= {come, go}
    return mask


def test_is_offered():
    assert ecoflap_register_pruners() == {"dsnot": Dsnot}
    assert Dsnot() == Dsnot(inner=Wanda(), max_cycles=50, threshold=0.1, same_sign=True)
    assert Dsnot().needs == (ColumnNorm, ColumnMoments)
    assert Dsnot(Magnitude()).needs == (ColumnMoments,)


@pytest.mark.parametrize("cycles", [1, 3, 50])
@pytest.mark.parametrize("inner", [Wanda("layer"), Magnitude(), SparseGPT()], ids=lambda inner: type(inner).__name__)
@pytest.mark.parametrize("same_sign", [False, True])
@pytest.mark.parametrize(("budget", "m"), [(Keep(24 * 15 + 5), None), (Pattern(2, 4), 4), (Pattern(3, 8), 8)], ids=str)
def test_it_is_the_exchanges_written_out_one_by_one(budget, m, same_sign, inner, cycles):
    weight, x = drawn(24, 32), leaning(32)
    before = inner(weight, all_of(x), budget, PLACE)
    mask, after, notes, _ = Dsnot(inner, cycles, same_sign=same_sign)(weight, all_of(x), budget, PLACE)
    assert notes == ()
    assert torch.equal(mask, slowly(x, weight, before, cycles, m, same_sign))
    assert not torch.equal(mask, before.mask)
    assert torch.equal(after, torch.where(before.mask, before.weight, weight) * mask)


@pytest.mark.parametrize("budget", [Keep(64 * 96 * 4 // 10), Pattern(2, 4)], ids=str)
def test_rows_are_expected_to_be_nearer(budget):
    weight, x = drawn(64, 96), leaning(96)
    before, after = (pruner(weight, all_of(x), budget, PLACE).weight for pruner in (Wanda(), Dsnot()))
    old, new = (expected_error(x, weight, pruned) for pruned in (before, after))
    assert new.abs().mean() < 0.5 * old.abs().mean()
    if isinstance(budget, Pattern):  # a row of one ends before its error changes its sign
        assert torch.equal(new.sign(), old.sign())


@pytest.mark.parametrize("budget", [Keep(16 * 11), Pattern(2, 4)], ids=str)
def test_errors_before_and_after_are_shares_of_what_is_expected(budget):
    weight, x = drawn(16, 32), leaning(32)
    found = Dsnot()(weight, all_of(x), budget, PLACE)
    (told,) = found.mended
    output = expected_error(x, weight, torch.zeros_like(weight)).abs().sum()
    for pruned, share in ((Wanda()(weight, all_of(x), budget, PLACE), told.before), (found, told.after)):
        assert share == pytest.approx(float(expected_error(x, weight, pruned.weight).abs().sum() / output), rel=1e-4)
    assert (told.by, told.is_kept) == ("dsnot", True)
    assert told.after < told.before


def test_the_squared_error_falls_where_means_are_what_inputs_are():
    """Inputs that hardly vary, and errors of many weights: then the expected error is the error."""
    weight, x = drawn(16, 256) + 0.3, 1 + 0.01 * drawn(300, 256)
    before, after = (pruner(weight, all_of(x), Keep(16 * 90), PLACE).weight for pruner in (Wanda(), Dsnot()))
    assert error(x, weight, after) < 0.1 * error(x, weight, before)


def test_rows_at_their_threshold_stay():
    weight, x = drawn(16, 24), leaning(24)
    before = Wanda()(weight, all_of(x), Keep(200), PLACE)
    errors = expected_error(x, weight, before.weight).abs()
    between = float(errors.median() + 1e-3)
    mask = Dsnot(threshold=between)(weight, all_of(x), Keep(200), PLACE).mask
    same = (mask == before.mask).all(1)
    assert same[errors <= between].all()
    assert not same[errors > between].all()
    assert torch.equal(Dsnot(threshold=1e9)(weight, all_of(x), Keep(200), PLACE).mask, before.mask)


def test_an_input_without_variance_comes_back_first():
    weight, x = drawn(1, 8).abs() + 0.1, drawn(100, 8) + 1.0
    x[:, 2] = 0.5
    weight[0, 2] = 0.01  # pruned by Wanda, and known exactly
    before = Wanda()(weight, all_of(x), Keep(4), PLACE)
    mask = Dsnot(max_cycles=1, threshold=0.0)(weight, all_of(x), Keep(4), PLACE).mask
    assert not before.mask[0, 2]
    weight[0, before.mask[0].nonzero()[0]] *= -1  # one that can go for it
    mask = Dsnot(max_cycles=1, threshold=0.0)(weight, all_of(x), Keep(4), PLACE).mask
    assert mask[0, 2]


@settings(max_examples=80)
@given(layers())
def test_counts_of_rows_and_runs_stay(layer):
    weight, x, budget = layer
    for inner in (Wanda(), Magnitude()):
        before = inner(weight, all_of(x), budget, PLACE)
        mask, after, *_ = Dsnot(inner, threshold=0.0)(weight, all_of(x), budget, PLACE)
        assert mask.sum() == kept_by(budget, weight)
        assert torch.equal(mask.sum(1), before.mask.sum(1))
        if isinstance(budget, Pattern):
            assert (mask.view(-1, budget.m).sum(1) == budget.n).all()
        assert torch.equal(after, torch.where(mask, weight, 0))
        assert not after.signbit()[~mask].any()


class Noting:
    """Says something, and keeps the first weights."""

    needs = ()

    def __call__(self, weight, seen, budget, layer):
        mask = select(-torch.arange(weight.numel(), dtype=torch.float32).reshape(weight.shape), budget)
        return Pruned(mask, weight * mask, ("something of the inner one",))


def test_notes_of_the_inner_pruner_are_carried():
    assert Dsnot(Noting())(drawn(4, 8), all_of(leaning(8)), Keep(16), PLACE).notes == ("something of the inner one",)


def test_a_layer_that_never_saw_anything_keeps_the_inner_mask():
    weight = drawn(8, 16)
    empty = Statistics({ColumnNorm: ColumnNorm(16), ColumnMoments: ColumnMoments(16)})
    assert torch.equal(Dsnot()(weight, empty, Keep(50), PLACE).mask, Wanda()(weight, empty, Keep(50), PLACE).mask)


class TestColumnMoments:
    def test_are_those_of_all_tokens_however_they_came(self):
        x = 100.0 + leaning(6, tokens=5000)
        one, two = ColumnMoments(6), ColumnMoments(6)
        for some in x[:3000].split(700):
            one.add(some.reshape(1, -1, 6))
        two.add(x[3000:])
        one.merge(two)
        assert one.tokens == 5000
        torch.testing.assert_close(one.mean, x.double().mean(0))
        torch.testing.assert_close(one.variance, x.double().var(0, unbiased=False), rtol=1e-9, atol=0)
        torch.testing.assert_close(one.squared, x.double().square().sum(0))

    def test_move_to_where_they_are_asked(self):
        moments = ColumnMoments(4)
        assert moments.to("meta") is moments
        assert moments.mean.is_meta


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_cycles": 0}, "max_cycles is 0"),
        ({"threshold": -1.0}, "threshold is -1.0; it is an expected error of an output"),
        ({"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        Dsnot(**parameters)
