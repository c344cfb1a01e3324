from itertools import combinations

import pytest
import torch
from gram_layers import both_of, correlated, drawn, error, kept_by, layers
from hypothesis import given, settings
from one_layer import PLACE, seen

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.contracts.records import Statistics
from ecoflap.core.errors import EcoflapError
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners import admm
from ecoflap.plugins.pruners.admm import Admm, ecoflap_register_pruners
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda


def slow_mask(values, budget, keep, compare):
    """Stable sorts in float64, one run of competitors after the other; the first of each go."""
    rows, columns = values.shape
    mask = torch.ones(rows, columns, dtype=torch.bool)
    if isinstance(budget, Pattern):
        safe = torch.zeros_like(mask)
        for i in range(rows):
            for start in range(0, columns, budget.m):
                safe[i, start + values[i, start : start + budget.m].argsort(stable=True)[budget.m - budget.n :]] = True
        order = values.masked_fill(safe, torch.inf).flatten().argsort(stable=True)
        mask.view(-1)[order[: values.numel() - keep]] = False
    elif compare == "layer":
        mask.view(-1)[values.flatten().argsort(stable=True)[: values.numel() - keep]] = False
    else:
        for i in range(rows):
            kept = (i + 1) * keep // rows - i * keep // rows
            mask[i, values[i].argsort(stable=True)[: columns - kept]] = False
    return mask


def the_paper(weight, x, budget, compare, iterations=20, gradual=15, damping=0.1, rho=1.0):
    """The algorithm in float64, by an explicit inverse, one weight matrix [in, out] as the paper has it."""
    x, w = x.double(), weight.double().T
    norms = x.norm(dim=0)
    a = (x / norms).T @ (x / norms) + damping * torch.eye(x.shape[1], dtype=torch.float64)
    w = w * norms[:, None]
    inverse = torch.linalg.inv(a + rho * torch.eye(len(a), dtype=torch.float64))
    v, u, final = w.clone(), torch.zeros_like(w), kept_by(budget, weight)
    for step in range(1, iterations + 1):
        if step <= gradual:
            pruned = round((weight.numel() - final) * (1 - (1 - step / gradual) ** 3))
            mask = slow_mask((v + u).T.abs(), budget, weight.numel() - pruned, compare).T
        z = (v + u) * mask
        u = u + v - z
        v = inverse @ (a @ w + rho * (z - u))
    return mask.T, (((v + u) * mask) / norms[:, None]).T


def test_is_offered():
    assert ecoflap_register_pruners() == {"admm": Admm}
    assert Admm() == Admm(iterations=20, gradual=15, damping=0.1, rho=1.0, compare="row")
    assert Admm.needs == (Gram,)


@pytest.mark.parametrize("compare", ["row", "layer"])
@pytest.mark.parametrize("budget", [Keep(300), Keep(517), Keep(24 * 32), Pattern(2, 4), Pattern(1, 8)], ids=str)
def test_is_the_papers(budget, compare):
    weight, x = drawn(24, 32), correlated(32)
    mask, after, notes, _ = Admm(compare=compare)(weight, seen(Gram, x), budget, PLACE)
    expected, values = the_paper(weight, x, budget, compare)
    assert notes == ()
    assert torch.equal(mask, expected)
    assert (after - values).norm() < 1e-4 * values.norm()


def test_without_growing_the_mask_is_wandas():
    weight, inputs = drawn(24, 32), both_of(correlated(32))
    mask = Admm(gradual=0)(weight, inputs, Keep(301), PLACE).mask
    assert torch.equal(mask, Wanda()(weight, inputs, Keep(301), PLACE).mask)


@pytest.mark.parametrize("budget", [Keep(200), Pattern(2, 4)], ids=str)
def test_it_ends_at_least_squares_on_its_mask(budget):
    weight, x = drawn(16, 32), correlated(32)
    mask, after, *_ = Admm(iterations=600)(weight, seen(Gram, x), budget, PLACE)
    held = torch.cat([x.double(), 0.1**0.5 * torch.diag(x.double().norm(dim=0))])
    for row, kept, found in zip(weight.double(), mask, after, strict=True):
        best = torch.linalg.lstsq(held[:, kept], held @ row).solution
        assert (found[kept] - best).norm() < 1e-3 * best.norm()


def test_it_is_near_the_best_of_all_masks():
    """Every mask of a row with its least squares, by brute force."""
    ratios = []
    for seed in range(12):
        weight, x = drawn(1, 8, seed=seed), correlated(8, seed=seed)
        after = Admm(damping=0.0, iterations=60, gradual=40)(weight, seen(Gram, x), Keep(4), PLACE).weight
        best = torch.inf
        for kept in combinations(range(8), 4):
            found = torch.zeros(1, 8, dtype=torch.float64)
            found[0, list(kept)] = torch.linalg.lstsq(x[:, kept].double(), x.double() @ weight[0].double()).solution
            best = min(best, error(x, weight, found))
        ratios.append(error(x, weight, after) / best)
    assert min(ratios) > 1 - 1e-4
    assert sum(ratio < 1.001 for ratio in ratios) >= 6
    assert sorted(ratios)[len(ratios) // 2] < 1.1


@pytest.mark.parametrize("budget", [Keep(32 * 256 * 4 // 10), Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_output_error_is_below_sparsegpts(seed, budget):
    weight, x = drawn(32, 256, seed=100 + seed), correlated(256, seed=seed, tokens=1024)
    ours, theirs = (pruner(weight, seen(Gram, x), budget, PLACE).weight for pruner in (Admm(), SparseGPT()))
    assert error(x, weight, ours) < 0.9 * error(x, weight, theirs)


@settings(max_examples=80)
@given(layers())
def test_counts_are_exact_and_all_is_finite(layer):
    weight, x, budget = layer
    for compare in ("row", "layer"):
        mask, after, *_ = Admm(compare=compare)(weight, seen(Gram, x), budget, PLACE)
        assert mask.sum() == kept_by(budget, weight)
        if isinstance(budget, Pattern):
            assert (mask.view(-1, budget.m).sum(1) == budget.n).all()
        assert not after[~mask].any()
        assert not after.signbit()[~mask].any()
        assert after.isfinite().all()
        assert after.dtype == weight.dtype
        plain = torch.where(mask, weight, 0)
        assert error(x, weight, after) <= error(x, weight, plain) * (1 + 1e-4) + 1e-6


def test_weights_of_dead_inputs_go_first_and_keep_their_values_otherwise():
    x, weight = correlated(16), drawn(8, 16)
    x[:, [3, 11]] = 0
    weight[:, 5] = 0
    mask, *_ = Admm()(weight, seen(Gram, x), Keep(8 * 13), PLACE)
    assert not mask[:, [3, 5, 11]].any()
    mask, after, *_ = Admm()(weight, seen(Gram, x), Keep(8 * 15), PLACE)
    assert not mask[:, 5].any()
    assert torch.equal(after[:, [3, 11]], weight[:, [3, 11]])


def test_fewer_tokens_than_inputs_are_solved_by_too():
    weight = drawn(8, 16)
    few, enough = (Admm()(weight, seen(Gram, correlated(16, tokens=n)), Keep(50), PLACE) for n in (15, 16))
    assert few.notes == enough.notes == ()  # the engine tells it of any pruner
    assert not torch.equal(few.weight, torch.where(few.mask, weight, 0))


def test_a_layer_that_never_saw_anything_keeps_its_count():
    weight = drawn(8, 16)
    mask, after, *_ = Admm()(weight, Statistics({Gram: Gram(16)}), Keep(50), PLACE)
    assert mask.sum() == 50
    assert torch.equal(after, torch.where(mask, weight, 0))


def test_layers_with_the_same_inputs_share_one_inverse(monkeypatch):
    made = []
    inverted = admm._inverted
    monkeypatch.setattr(admm, "_inverted", lambda matrix, added: made.append(added) or inverted(matrix, added))
    inputs = seen(Gram, correlated(16))
    Admm()(drawn(8, 16), inputs, Keep(64), PLACE)
    Admm(compare="layer")(drawn(12, 16), inputs, Pattern(2, 4), PLACE)
    Admm(damping=0.5)(drawn(8, 16), inputs, Keep(64), PLACE)
    assert made == [1.1, 1.5]


def test_the_weight_given_is_left_alone():
    weight = drawn(8, 16).requires_grad_()
    before = weight.detach().clone()
    assert not Admm()(weight, seen(Gram, correlated(16)), Keep(64), PLACE).weight.requires_grad
    assert torch.equal(weight, before)


def test_what_does_not_fit_the_dtype_is_not_taken():
    weight = torch.full((8, 40), 60000.0, dtype=torch.float16)
    mask, after, notes, _ = Admm()(weight, seen(Gram, correlated(40).abs()), Keep(40), PLACE)
    assert torch.equal(after, torch.where(mask, weight, 0))
    assert notes == (
        "ADMM gave weights that do not fit torch.float16, or are not finite, so what was there before it is kept",
    )


def test_what_cannot_be_inverted_is_an_error():
    x = correlated(16)
    x[3, 3] = float("nan")
    with pytest.raises(EcoflapError, match="cannot invert the Gram matrix of this layer's inputs"):
        Admm()(drawn(8, 16), seen(Gram, x), Keep(64), PLACE)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"gradual": 21}, "gradual is 21; it is a number of iterations, 0 to 20"),
        ({"gradual": -1}, "gradual is -1"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"rho": 0.0}, "rho is 0"),
    ],
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        Admm(**parameters)


def test_budgets_that_do_not_fit():
    with pytest.raises(EcoflapError, match="in_features 40 is not divisible by 16"):
        Admm()(drawn(8, 40), seen(Gram, correlated(40)), Pattern(8, 16), PLACE)
    with pytest.raises(EcoflapError, match="321 weights cannot be kept of the 320"):
        Admm()(drawn(8, 40), seen(Gram, correlated(40)), Keep(321), PLACE)
