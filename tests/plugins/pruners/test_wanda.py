import pytest
import torch
from one_layer import PLACE, seen

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.plugins.pruners.wanda import Wanda, ecoflap_register_pruners


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sorted_rows(weight, x, pruned):
    """The method in three lines: in every row a stable sort of |W| ‖X‖, and the first ones go."""
    mask = torch.ones(weight.shape, dtype=torch.bool)
    metric = weight.abs().double() * x.double().reshape(-1, x.shape[-1]).square().sum(0).sqrt()
    return mask.scatter_(1, metric.sort(dim=1, stable=True).indices[:, :pruned], False)


@pytest.fixture
def x():
    return drawn(3, 50, 32, seed=1) * torch.logspace(-2, 2, 32)


def test_is_offered():
    assert ecoflap_register_pruners() == {"wanda": Wanda}
    assert Wanda().compare == "row"
    assert Wanda.needs == (ColumnNorm,)


@pytest.mark.parametrize("pruned", [0, 1, 16, 31, 32])
def test_is_the_method(x, pruned):
    weight = drawn(24, 32)
    mask, after, *_ = Wanda()(weight, seen(ColumnNorm, x), Keep(24 * (32 - pruned)), PLACE)
    assert torch.equal(mask, sorted_rows(weight, x, pruned))
    assert torch.equal(after, torch.where(mask, weight, 0.0))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 32)])
def test_is_the_method_in_every_run(x, n, m):
    weight = drawn(24, 32)
    mask, *_ = Wanda()(weight, seen(ColumnNorm, x), Pattern(n, m), PLACE)
    for start in range(0, 32, m):
        expected = sorted_rows(weight[:, start : start + m], x[..., start : start + m], m - n)
        assert torch.equal(mask[:, start : start + m], expected)


def test_by_layer_is_one_threshold(x):
    weight = drawn(24, 32)
    mask, *_ = Wanda("layer")(weight, seen(ColumnNorm, x), Keep(300), PLACE)
    metric = weight.abs() * x.reshape(-1, 32).norm(dim=0)
    assert mask.sum() == 300
    assert metric[mask].min() > metric[~mask].max()


def test_ties_as_in_a_stable_sort():
    weight, x = torch.ones(3, 8), torch.ones(5, 8)
    assert torch.equal(Wanda()(weight, seen(ColumnNorm, x), Keep(9), PLACE).mask, sorted_rows(weight, x, 5))


def test_a_remainder_is_spread_over_the_rows(x):
    counts = Wanda()(drawn(24, 32), seen(ColumnNorm, x), Keep(24 * 16 + 5), PLACE).mask.sum(1)
    assert counts.sum() == 24 * 16 + 5
    assert counts.max() - counts.min() == 1


def test_zeros_go_first_then_dead_inputs(x):
    x[..., 3] = 0
    weight = drawn(24, 32)
    weight[:, 7] = 0
    inputs = seen(ColumnNorm, x)
    mask, *_ = Wanda()(weight, inputs, Keep(24 * 31), PLACE)
    assert not mask[:, 7].any()
    mask, *_ = Wanda()(weight, inputs, Keep(24 * 30), PLACE)
    assert not mask[:, [3, 7]].any()
    assert mask.sum() == 24 * 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_stays_what_it_is(x, dtype):
    weight = drawn(24, 32).to(dtype)
    mask, after, *_ = Wanda()(weight, seen(ColumnNorm, x.to(dtype)), Keep(24 * 10), PLACE)
    assert after.dtype == dtype
    assert torch.equal(after[mask], weight[mask])
    assert not after.double().signbit()[~mask].any()
    assert torch.equal(mask, sorted_rows(weight.float(), x.to(dtype), 22))


def test_inputs_that_are_not_finite(x):
    x[0, 0, 0] = float("inf")
    with pytest.raises(EcoflapError, match="not finite"):
        Wanda()(drawn(24, 32), seen(ColumnNorm, x), Keep(100), PLACE)


def test_a_pattern_that_does_not_fit(x):
    with pytest.raises(EcoflapError, match="in_features 32 is not divisible by 5"):
        Wanda()(drawn(24, 32), seen(ColumnNorm, x), Pattern(2, 5), PLACE)
