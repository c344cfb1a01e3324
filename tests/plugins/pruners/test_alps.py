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
from ecoflap.plugins.pruners import alps
from ecoflap.plugins.pruners.admm import Admm
from ecoflap.plugins.pruners.alps import Alps, ecoflap_register_pruners
from ecoflap.plugins.pruners.refit import Refit
from ecoflap.plugins.pruners.wanda import Wanda


def largest(values, budget, compare):
    """Zero all but the largest of a matrix [in, out], by sorts of one run of competitors after the other."""
    rows = values.T.clone()
    if isinstance(budget, Pattern):
        runs, kept = rows.reshape(-1, budget.m), [budget.n] * (rows.numel() // budget.m)
    elif compare == "layer":
        runs, kept = rows.reshape(1, -1), [budget.count]
    else:
        runs, count = rows, budget.count
        kept = [(i + 1) * count // len(rows) - i * count // len(rows) for i in range(len(rows))]
    for run, most in zip(runs, kept, strict=True):
        run[run.abs().argsort(stable=True)[: len(run) - most]] = 0
    return runs.reshape(rows.shape).T


def the_paper(weight, x, budget, compare="layer", rho=0.1, ridge=0.01):
    """Algorithm 1 in float64, by an explicit inverse in each iteration, with least squares for its second part."""
    x, w = x.double(), weight.double().T
    h = x.T @ x
    h = h + ridge * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    norms = h.diagonal().sqrt()
    a, dense = h / norms / norms[:, None], w * norms[:, None]
    k, lowered, has_moved = kept_by(budget, weight), 0, False
    d, v = largest(dense, budget, compare), torch.zeros_like(dense)
    first = before = d != 0
    for iteration in range(300):
        w = torch.linalg.inv(a + rho * torch.eye(len(a), dtype=torch.float64)) @ (a @ dense - v + rho * d)
        d = largest(w + v / rho, budget, compare)
        v = v + rho * (w - d)
        if iteration % 3 == 2:
            s = int(((d != 0) != before).sum())
            before = d != 0
            if s >= 0.005 * k or lowered == 8:
                has_moved = True
            if has_moved and (s == 0 or (iteration >= 30 and s < 0.0003 * k)):
                break
            if not has_moved:
                rho, lowered, before = rho / 5, lowered + 1, first
                d, v = largest(dense, budget, compare), torch.zeros_like(dense)
            elif s > 0.1 * k:
                rho *= 1.3
            else:
                rho *= 1.2 if s > 0.005 * k else 1.1
    mask = (d != 0).T
    held = torch.linalg.cholesky(h).T  # ‖held·w‖² is the output with the ridge
    solved = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, found in zip(weight.double(), mask, solved, strict=True):
        found[kept] = torch.linalg.lstsq(held[:, kept], held @ row).solution
    return mask, solved


def test_is_offered():
    assert ecoflap_register_pruners() == {"alps": Alps}
    assert Alps() == Alps(rho=0.1, iterations=300, steps=10, damping=0.01, compare="layer")
    assert Alps.needs == (Gram,)


@pytest.mark.parametrize("compare", ["row", "layer"])
@pytest.mark.parametrize("budget", [Keep(150), Keep(300), Keep(517), Pattern(2, 4), Pattern(1, 8)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_papers(seed, budget, compare):
    weight, x = drawn(24, 32, seed=seed), correlated(32, seed=seed)
    mask, after, notes, _ = Alps(compare=compare, steps=64)(weight, seen(Gram, x), budget, PLACE)
    expected, values = the_paper(weight, x, budget, compare)
    assert notes == ()
    assert torch.equal(mask, expected)
    assert (after - values).norm() < 2e-3 * values.norm()
    assert not torch.equal(mask, Wanda(compare)(weight, both_of(x), budget, PLACE).mask)


def test_a_support_that_hardly_moves_is_sought_with_less_penalty():
    """Inputs that go together little: with the first ρ nothing moves, with a smaller one something does."""
    weight, x = drawn(40, 24), drawn(400, 24) * torch.logspace(-0.5, 0.5, 24)
    inputs = seen(Gram, x)
    tried = {rho: Alps(rho=rho, steps=60)(weight, inputs, Keep(480), PLACE) for rho in (1000.0, 200.0, 8.0)}
    expected, values = the_paper(weight, x, Keep(480), rho=1000.0)
    assert torch.equal(tried[1000.0].mask, expected)
    assert (tried[1000.0].weight - values).norm() < 2e-3 * values.norm()
    assert torch.equal(tried[200.0].mask, tried[1000.0].mask)
    assert not torch.equal(tried[1000.0].mask, Wanda("layer")(weight, both_of(x), Keep(480), PLACE).mask)


def test_inputs_that_have_nothing_in_common_leave_wandas_mask():
    """With XᵀX diagonal no weight can make up for another: the largest |W|·‖X‖ are best, and keep their values."""
    weight, x = drawn(12, 16), torch.cat([torch.diag(torch.logspace(-1, 1, 16))] * 2)
    mask, after, *_ = Alps(damping=0.0)(weight, seen(Gram, x), Keep(70), PLACE)
    assert torch.equal(mask, Wanda("layer")(weight, both_of(x), Keep(70), PLACE).mask)
    torch.testing.assert_close(after, torch.where(mask, weight, 0))


def test_it_is_near_the_best_of_all_masks():
    """Every mask of a row with its least squares, by brute force."""
    ratios = []
    for seed in range(12):
        weight, x = drawn(1, 8, seed=seed), correlated(8, seed=seed)
        after = Alps(damping=0.0)(weight, seen(Gram, x), Keep(4), PLACE).weight
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
@pytest.mark.parametrize("seed", range(2))
def test_output_error_is_below_admms(seed, budget):
    weight, x = drawn(32, 256, seed=100 + seed), correlated(256, seed=seed, tokens=1024)
    ours, theirs = (pruner(weight, seen(Gram, x), budget, PLACE).weight for pruner in (Alps(), Admm()))
    assert error(x, weight, ours) < 0.9 * error(x, weight, theirs)


def test_ten_steps_come_near_least_squares_on_its_mask():
    weight, x = drawn(32, 64), correlated(64)
    mask, after, *_ = Alps(damping=0.0)(weight, both_of(x), Keep(800), PLACE)

    class Same:
        needs = ()

        def __call__(self, weight, seen, budget, layer):
            return alps.Pruned(mask, torch.where(mask, weight, 0))

    best = Refit(Same(), solver="exact", damping=0.0)(weight, both_of(x), Keep(800), PLACE).weight
    assert error(x, weight, best) * (1 - 1e-5) <= error(x, weight, after) < 1.02 * error(x, weight, best)


@settings(max_examples=60)
@given(layers())
def test_counts_are_exact_and_all_is_finite(layer):
    weight, x, budget = layer
    for compare in ("row", "layer"):
        mask, after, *_ = Alps(compare=compare)(weight, seen(Gram, x), budget, PLACE)
        assert mask.sum() == kept_by(budget, weight)
        if isinstance(budget, Pattern):
            assert (mask.view(-1, budget.m).sum(1) == budget.n).all()
        assert not after[~mask].any()
        assert not after.signbit()[~mask].any()
        assert after.isfinite().all()
        assert after.dtype == weight.dtype
        assert error(x, weight, after) <= error(x, weight, torch.where(mask, weight, 0)) * (1 + 1e-4) + 1e-6


def test_weights_of_dead_inputs_go_first_and_keep_their_values_otherwise():
    x, weight = correlated(16), drawn(8, 16)
    x[:, [3, 11]] = 0
    weight[:, 5] = 0
    mask, *_ = Alps()(weight, seen(Gram, x), Keep(8 * 13), PLACE)
    assert not mask[:, [3, 5, 11]].any()
    mask, after, *_ = Alps()(weight, seen(Gram, x), Keep(8 * 15), PLACE)
    assert not mask[:, 5].any()
    assert torch.equal(after[:, [3, 11]], weight[:, [3, 11]])


def test_fewer_tokens_than_inputs_are_solved_by_too():
    weight = drawn(8, 16)
    few, enough = (Alps()(weight, seen(Gram, correlated(16, tokens=n)), Keep(50), PLACE) for n in (15, 16))
    assert few.notes == enough.notes == ()  # the engine tells it of any pruner


def test_a_layer_that_never_saw_anything_keeps_its_count():
    weight = drawn(8, 16)
    mask, after, *_ = Alps()(weight, Statistics({Gram: Gram(16)}), Keep(50), PLACE)
    assert mask.sum() == 50
    assert torch.equal(after, torch.where(mask, weight, 0))


def test_layers_with_the_same_inputs_are_decomposed_once(monkeypatch):
    made = []
    decomposed = alps._decomposed
    monkeypatch.setattr(alps, "_decomposed", lambda matrix: made.append(len(matrix)) or decomposed(matrix))
    inputs = seen(Gram, correlated(16))
    Alps()(drawn(8, 16), inputs, Keep(64), PLACE)
    Alps(compare="row", rho=1.0)(drawn(12, 16), inputs, Pattern(2, 4), PLACE)
    assert len(made) == 1
    Alps(damping=0.5)(drawn(8, 16), inputs, Keep(64), PLACE)
    assert len(made) == 2


def test_the_weight_given_is_left_alone():
    weight = drawn(8, 16).requires_grad_()
    before = weight.detach().clone()
    assert not Alps()(weight, seen(Gram, correlated(16)), Keep(64), PLACE).weight.requires_grad
    assert torch.equal(weight, before)


def test_what_does_not_fit_the_dtype_is_not_taken():
    weight = torch.full((8, 40), 60000.0, dtype=torch.float16)
    mask, after, notes, _ = Alps()(weight, seen(Gram, correlated(40).abs()), Keep(40), PLACE)
    assert torch.equal(after, torch.where(mask, weight, 0))
    assert len(notes) == 1
    assert notes[0].startswith("ALPS gave weights that do not fit torch.float16, or are not finite")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_cannot_be_decomposed_is_an_error(number):
    x = correlated(16)
    x[3, 3] = number
    with pytest.raises(EcoflapError, match="cannot decompose the Gram matrix of this layer's inputs"):
        Alps()(drawn(8, 16), seen(Gram, x), Keep(64), PLACE)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"rho": 0.0}, "rho is 0.0; it is a penalty, above 0"),
        ({"rho": float("nan")}, "rho is nan"),
    ],
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        Alps(**parameters)


def test_budgets_that_do_not_fit():
    with pytest.raises(EcoflapError, match="in_features 40 is not divisible by 16"):
        Alps()(drawn(8, 40), seen(Gram, correlated(40)), Pattern(8, 16), PLACE)
    with pytest.raises(EcoflapError, match="321 weights cannot be kept of the 320"):
        Alps()(drawn(8, 40), seen(Gram, correlated(40)), Keep(321), PLACE)
