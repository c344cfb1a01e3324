import pytest
import torch
from one_layer import PLACE, seen

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.shared import inverse_factor
from ecoflap.plugins.pruners.sparsegpt import SparseGPT, ecoflap_register_pruners


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(features, seed=0, tokens=600, log_scale=0.0):
    """x = zA, its columns scaled over some decades."""
    mixing = torch.eye(features) + 0.3 * drawn(features, features, seed=seed + 1)
    return drawn(tokens, features, seed=seed) @ mixing * torch.logspace(-log_scale, log_scale, features)


def surgeon(weight, x, mask, damping):
    """Optimal Brain Surgeon in float64, one column after the other, the inverse downdated by elimination.

    :return: The weights after, and each weight's (w²/[H⁻¹]_jj) when its column was reached.
    """
    w, x = weight.double().clone(), x.double()
    h = x.T @ x
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    saliency = torch.zeros_like(w)
    for j in range(w.shape[1]):
        saliency[:, j] = w[:, j] ** 2 / inverse[j, j]
        error = torch.where(mask[:, j], 0.0, w[:, j]) / inverse[j, j]
        w -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return torch.where(mask, w, 0.0), saliency


def error(x, weight, pruned):
    return float((x.double() @ (weight.double() - pruned.double()).T).norm())


def test_is_offered():
    assert ecoflap_register_pruners() == {"sparsegpt": SparseGPT}
    assert SparseGPT() == SparseGPT(damping=0.01, block_size=128)
    assert SparseGPT.needs == (Gram,)


@pytest.mark.parametrize(
    "budget", [Keep(3000), Keep(0), Keep(24 * 300), Pattern(2, 4), Pattern(3, 6), Pattern(7, 20)], ids=str
)
@pytest.mark.parametrize("block_size", [128, 50, 1000])
def test_weights_are_the_surgeons(budget, block_size):
    weight, x = drawn(24, 300), correlated(300, log_scale=0.5, tokens=900)
    mask, after, *_ = SparseGPT(block_size=block_size)(weight, seen(Gram, x), budget, PLACE)
    expected, _ = surgeon(weight, x, mask, 0.01)
    assert mask.sum() == (budget.count if isinstance(budget, Keep) else budget.keep_of(weight.numel()))
    assert not after[~mask].any()
    assert not after.signbit()[~mask].any()
    assert (after - expected).norm() <= 1e-4 * expected.norm()


def test_a_patterns_mask_is_the_surgeons():
    """Chosen at every m-th column from values that have felt all columns before it, and none of the m."""
    weight, x, pattern = drawn(8, 48), correlated(48), Pattern(2, 4)
    mask, *_ = SparseGPT(block_size=16)(weight, seen(Gram, x), pattern, PLACE)
    for start in range(0, 48, 4):
        before = mask.clone()
        before[:, start:] = True  # nothing is pruned from here on
        _, saliency = surgeon(weight, x, before, 0.01)
        weakest = saliency[:, start : start + 4].sort(dim=1, stable=True).indices[:, :2]
        assert torch.equal(mask[:, start : start + 4], torch.ones(8, 4).scatter(1, weakest, 0).bool())


def test_a_counts_mask_is_the_surgeons():
    """Chosen once for a block of columns, over all rows, from values that have felt the blocks before it."""
    weight, x = drawn(10, 96), correlated(96)
    mask, *_ = SparseGPT(block_size=32)(weight, seen(Gram, x), Keep(481), PLACE)
    kept = []
    for start in range(0, 96, 32):
        before = mask.clone()
        before[:, start:] = True
        _, saliency = surgeon(weight, x, before, 0.01)
        block, chosen = saliency[:, start : start + 32], mask[:, start : start + 32]
        assert block[chosen].min() > block[~chosen].max() * (1 - 1e-5)
        kept.append(int(chosen.sum()))
    assert kept == [160, 160, 161]


def test_with_uncorrelated_inputs_it_is_magnitude_in_every_block():
    weight = drawn(16, 300)
    mask, after, *_ = SparseGPT()(weight, seen(Gram, torch.eye(300)), Keep(16 * 150), PLACE)
    for start, keep in ((0, 1024), (128, 1024), (256, 352)):
        block = weight[:, start : start + 128]
        assert torch.equal(mask[:, start : start + 128], Magnitude()(block, Statistics(), Keep(keep), PLACE).mask)
    assert torch.equal(after, torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("log_scale", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_output_error_is_below_magnitudes_and_below_no_update(seed, log_scale):
    weight, x = drawn(32, 256, seed=100 + seed), correlated(256, seed=seed, tokens=1024, log_scale=log_scale)
    keep = Keep(weight.numel() // 2)
    mask, after, *_ = SparseGPT()(weight, seen(Gram, x), keep, PLACE)
    ours = error(x, weight, after)
    assert ours < error(x, weight, Magnitude()(weight, Statistics(), keep, PLACE).weight)
    assert ours < error(x, weight, torch.where(mask, weight, 0.0))


def factor_of(inputs, damping):
    """The factor that is kept with the statistic; none is made."""

    def make():
        pytest.fail(f"no factor of damping {damping} is kept")

    return inputs[Gram].cached(("sparsegpt", damping), make)


def test_layers_with_the_same_inputs_share_one_factor(monkeypatch):
    made = []
    factorise = inverse_factor._factorise
    monkeypatch.setattr(inverse_factor, "_factorise", lambda *given: made.append(given[1]) or factorise(*given))
    inputs = seen(Gram, correlated(40))
    found = [SparseGPT()(drawn(8, 40), inputs, Keep(160), PLACE)]
    factor = factor_of(inputs, 0.01)
    found.append(SparseGPT()(drawn(12, 40), inputs, Pattern(2, 4), PLACE))
    assert factor_of(inputs, 0.01) is factor
    found.append(SparseGPT(damping=0.1)(drawn(8, 40), inputs, Keep(160), PLACE))
    assert made == [0.01, 0.1]
    assert [pruned.notes for pruned in found] == [(), (), ()]


@pytest.mark.parametrize("budget", [Keep(8 * 36), Keep(8 * 20), Pattern(2, 4)], ids=str)
def test_dead_inputs_lose_their_weights_and_the_count_holds(budget):
    x = correlated(40)
    x[:, [3, 17, 30]] = 0
    weight = drawn(8, 40)
    mask, after, *_ = SparseGPT(block_size=16)(weight, seen(Gram, x), budget, PLACE)
    assert mask.sum() == (budget.count if isinstance(budget, Keep) else 8 * 20)
    assert not after[:, [3, 17, 30]].any()
    live = after.clone()
    live[:, [3, 17, 30]] = weight[:, [3, 17, 30]]
    assert error(x, weight, live) == pytest.approx(error(x, weight, after))
    if budget == Keep(8 * 20):
        assert not mask[:, [3, 17, 30]].any()


def test_a_layer_that_never_saw_anything_keeps_its_count():
    mask, after, *_ = SparseGPT()(drawn(8, 40), Statistics({Gram: Gram(40)}), Keep(100), PLACE)
    assert mask.sum() == 100
    assert not after.any()


@pytest.mark.parametrize("budget", [Keep(8 * 20), Pattern(2, 4)], ids=str)
def test_zeros_go_before_all_else(budget):
    weight = drawn(8, 40)
    weight[:, ::4] = 0
    mask, *_ = SparseGPT()(weight, seen(Gram, correlated(40)), budget, PLACE)
    assert mask.sum() == 160
    assert not mask[:, ::4].any()


def test_zeros_go_before_dead_inputs():
    x, weight = correlated(40), drawn(8, 40)
    x[:, 5] = 0
    weight[:, 9] = 0
    mask, *_ = SparseGPT()(weight, seen(Gram, x), Keep(8 * 39), PLACE)
    assert not mask[:, 9].any()
    assert mask[:, 5].all()


def test_more_zeros_than_are_to_go_are_kept_as_zeros():
    mask, after, *_ = SparseGPT()(torch.zeros(8, 40), seen(Gram, correlated(40)), Keep(100), PLACE)
    assert mask.sum() == 100
    assert not after.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_is_computed_in_float32_and_given_back_in_its_own_dtype(dtype):
    weight, x = drawn(16, 64).to(dtype), correlated(64)
    mask, after, *_ = SparseGPT()(weight, seen(Gram, x), Keep(512), PLACE)
    single = SparseGPT()(weight.float(), seen(Gram, x), Keep(512), PLACE)
    assert after.dtype == dtype
    assert after.is_contiguous()
    assert mask.is_contiguous()
    assert torch.equal(mask, single.mask)
    assert torch.equal(after, single.weight.to(dtype))


def test_the_weight_given_is_left_alone():
    weight = drawn(8, 40)
    before = weight.clone()
    SparseGPT()(weight, seen(Gram, correlated(40)), Keep(100), PLACE)
    assert torch.equal(weight, before)


class TestDamping:
    def test_a_singular_gram_is_damped_more_and_says_so(self):
        weight, x = drawn(8, 40), correlated(40, tokens=10)
        inputs = seen(Gram, x)
        mask, after, notes, _ = SparseGPT(damping=0.0)(weight, inputs, Keep(160), PLACE)
        assert factor_of(inputs, 0.0).pivots.damping == 0.01
        assert notes == ("SparseGPT needed damping 0.01 instead of 0",)
        assert (after - surgeon(weight, x, mask, 0.01)[0]).norm() < 1e-4

    def test_tenfold_until_it_succeeds(self):
        inputs = seen(Gram, correlated(40))
        gram = inputs[Gram]
        gram._sum -= 0.5 * gram.matrix.diagonal().mean() * torch.eye(40)  # not a sum of squares any more
        mask, after, notes, _ = SparseGPT()(drawn(8, 40), inputs, Keep(160), PLACE)
        assert factor_of(inputs, 0.01).pivots.damping == 1.0
        assert notes == ("SparseGPT needed damping 1 instead of 0.01",)
        assert mask.sum() == 160
        assert after.isfinite().all()

    def test_every_layer_with_these_inputs_is_told(self):
        """A run tells a sentence once; a pruner, which remembers nothing, returns it each time."""
        inputs = seen(Gram, correlated(40, tokens=10))
        both = [SparseGPT(damping=0.0)(drawn(rows, 40), inputs, Keep(160), PLACE).notes for rows in (8, 12)]
        assert both == [("SparseGPT needed damping 0.01 instead of 0",)] * 2

    def test_what_cannot_be_factorised_is_an_error(self):
        x = correlated(40)
        x[3, 3] = float("nan")
        with pytest.raises(EcoflapError, match="the Gram matrix of this layer's inputs cannot be factorised, even at"):
            SparseGPT()(drawn(8, 40), seen(Gram, x), Keep(160), PLACE)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"damping": -1.0}, "damping"), ({"damping": float("nan")}, "damping"), ({"block_size": 0}, "block_size")],
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        SparseGPT(**parameters)


def test_budgets_that_do_not_fit():
    inputs = seen(Gram, correlated(40))
    with pytest.raises(EcoflapError, match="in_features 40 is not divisible by 16"):
        SparseGPT()(drawn(8, 40), inputs, Pattern(8, 16), PLACE)
    with pytest.raises(EcoflapError, match="321 weights cannot be kept of the 320"):
        SparseGPT()(drawn(8, 40), inputs, Keep(321), PLACE)


def test_weights_too_large_for_their_dtype():
    x = correlated(40)
    weight = torch.full((8, 40), 60000.0, dtype=torch.float16)
    with pytest.raises(EcoflapError, match="float16"):
        SparseGPT()(weight, seen(Gram, x.abs()), Keep(40), PLACE)
