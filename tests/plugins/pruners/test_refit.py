import re

import pytest
import torch
from gram_layers import both_of, correlated, drawn, error, kept_by, layers
from hypothesis import given, settings
from one_layer import PLACE

from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.contracts.records import Mended, Pruned
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.gram import Gram
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.refit import Refit, ecoflap_register_pruners
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.swap import Swap
from ecoflap.plugins.pruners.wanda import Wanda


def least_squares(x, weight, mask, damping):
    """Of each row by torch's lstsq in float64; damping is one more observation of every weight."""
    held = torch.cat([x.double(), damping**0.5 * torch.diag(x.double().norm(dim=0))])
    found = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept, best in zip(weight.double(), mask, found, strict=True):
        best[kept] = torch.linalg.lstsq(held[:, kept], held @ row).solution
    return found


def test_is_offered():
    assert ecoflap_register_pruners() == {"refit": Refit}
    assert Refit() == Refit(inner=Wanda(), solver="conjugate_gradient", steps=10, damping=0.1)
    assert Refit().needs == (ColumnNorm, Gram)
    assert Refit(Magnitude()).needs == Refit(SparseGPT()).needs == (Gram,)
    assert Refit(Swap(Wanda())).needs == (ColumnNorm, Gram)


@pytest.mark.parametrize("budget", [Keep(16 * 11 + 3), Keep(0), Keep(16 * 32), Pattern(2, 4)], ids=str)
@pytest.mark.parametrize("parameters", [{"solver": "exact"}, {"steps": 300}], ids=str)
@pytest.mark.parametrize("damping", [0.1, 0.01])
@pytest.mark.parametrize("inner", [Wanda("layer"), SparseGPT()], ids=lambda inner: type(inner).__name__)
def test_is_least_squares_on_the_inner_mask(inner, damping, parameters, budget):
    weight, x = drawn(16, 32), correlated(32)
    mask, after, notes, _ = Refit(inner, damping=damping, **parameters)(weight, both_of(x), budget, PLACE)
    best = least_squares(x, weight, mask, damping)
    assert notes == ()
    assert torch.equal(mask, inner(weight, both_of(x), budget, PLACE).mask)
    assert (after - best).norm() <= 2e-3 * best.norm()


def test_without_damping_nothing_is_left_to_gain():
    """The Karush-Kuhn-Tucker conditions: what is left of the output is orthogonal to every kept input."""
    weight, x = drawn(8, 24), correlated(24)
    mask, after, *_ = Refit(solver="exact", damping=0.0)(weight, both_of(x), Keep(90), PLACE)
    left = x.double() @ (weight - after).double().T
    cosines = (x.double().T @ left).T / (x.double().norm(dim=0) * left.norm(dim=0)[:, None])
    assert cosines[mask].abs().max() < 1e-4
    assert cosines[~mask].abs().max() > 0.1


def test_ten_steps_come_near():
    weight, x = drawn(64, 128), correlated(128)
    before, some, all_ = (
        error(x, weight, pruner(weight, both_of(x), Keep(64 * 50), PLACE).weight)
        for pruner in (Wanda(), Refit(), Refit(solver="exact"))
    )
    assert all_ < 0.7 * before
    assert some < before - 0.95 * (before - all_)


def test_they_nest():
    weight, x, budget = drawn(32, 64), correlated(64), Keep(32 * 26)
    pruners = (Wanda(), Swap(), Refit(), Refit(Swap()))
    errors = [error(x, weight, pruner(weight, both_of(x), budget, PLACE).weight) for pruner in pruners]
    assert errors[3] < min(errors[1], errors[2]) < max(errors[1], errors[2]) < errors[0]
    nested, swapped = (pruner(weight, both_of(x), budget, PLACE) for pruner in (Refit(Swap()), Swap()))
    assert torch.equal(nested.mask, swapped.mask)


@pytest.mark.parametrize("pruner", [Refit(), Swap()], ids=["refit", "swap"])
def test_errors_before_and_after_are_shares_of_the_output(pruner):
    weight, x, budget = drawn(16, 32), correlated(32), Keep(16 * 13)
    found = pruner(weight, both_of(x), budget, PLACE)
    output = error(x, weight, torch.zeros_like(weight))
    before, after = (
        error(x, weight, pruned.weight) / output for pruned in (Wanda()(weight, both_of(x), budget, PLACE), found)
    )
    (told,) = found.mended
    assert told == Mended(type(pruner).__name__.lower(), told.before, told.after, True)
    assert (told.before, told.after) == (pytest.approx(before, rel=1e-4), pytest.approx(after, rel=1e-4))
    assert after < 0.95 * before


def test_each_that_mends_tells_its_own_errors():
    weight, x, budget = drawn(32, 64), correlated(64), Keep(32 * 26)
    swapped, refitted = Refit(Swap())(weight, both_of(x), budget, PLACE).mended
    assert (swapped.by, refitted.by) == ("swap", "refit")
    assert refitted.before == pytest.approx(swapped.after, rel=1e-6)


def test_a_layer_that_puts_out_nothing_has_no_error():
    seen = both_of(torch.zeros(40, 32))
    assert Refit()(drawn(16, 32), seen, Keep(100), PLACE).mended == ()


@settings(max_examples=80)
@given(layers())
def test_the_mask_is_the_inner_one_and_no_error_grows(layer):
    weight, x, budget = layer
    before = Wanda()(weight, both_of(x), budget, PLACE)
    for solver in ("exact", "conjugate_gradient"):
        mask, after, *_ = Refit(solver=solver)(weight, both_of(x), budget, PLACE)
        assert mask.sum() == kept_by(budget, weight)
        assert torch.equal(mask, before.mask)
        assert after.dtype == weight.dtype
        assert after.isfinite().all()
        assert not after[~mask].any()
        assert not after.signbit()[~mask].any()
        assert error(x, weight, after) <= error(x, weight, before.weight) * (1 + 1e-4) + 1e-6


def test_weights_of_dead_inputs_stay():
    weight, x = drawn(8, 16), correlated(16)
    x[:, [3, 11]] = 0
    after = Refit()(weight, both_of(x), Keep(8 * 15), PLACE).weight
    assert torch.equal(after[:, 11], weight[:, 11])


class TestWhatIsNotBetter:
    def test_a_singular_matrix_leaves_the_inner_result(self):
        weight, x = drawn(4, 16), correlated(16)
        x[:, 7] = x[:, 6]
        weight[:, 6:8] = 9.0  # both are kept
        pruned = Refit(solver="exact", damping=0.0)(weight, both_of(x), Keep(32), PLACE)
        before = Wanda()(weight, both_of(x), Keep(32), PLACE)
        assert torch.equal(pruned.mask, before.mask)
        assert torch.equal(pruned.weight, before.weight)
        assert pruned.notes == (
            "refit gave weights that do not fit torch.float32, or are not finite, so what was there before it is kept",
        )

    def test_weights_beyond_the_dtype_leave_the_inner_result(self):
        weight = torch.full((8, 40), 60000.0, dtype=torch.float16)
        x = correlated(40).abs()
        pruned = Refit()(weight, both_of(x), Keep(40), PLACE)
        assert torch.equal(pruned.weight, Wanda()(weight, both_of(x), Keep(40), PLACE).weight)
        assert len(pruned.notes) == 1

    def test_a_larger_error_leaves_the_inner_result_and_says_how_much(self):
        """Damping of ten thousand holds kept weights to their dense values, and SparseGPT's are better ones."""
        weight, x = drawn(16, 32), correlated(32)
        before = SparseGPT()(weight, both_of(x), Keep(200), PLACE)
        pruned = Refit(SparseGPT(), damping=1e4)(weight, both_of(x), Keep(200), PLACE)
        assert torch.equal(pruned.weight, before.weight)
        errors = [error(x, weight, one) for one in (before.weight, torch.where(before.mask, weight, 0))]
        (note,) = pruned.notes
        said = re.fullmatch(
            r"refit would raise the output error from (\S+) to (\S+) of the output, so .* is kept",
            note,
        )
        told = [float(number) * error(x, weight, torch.zeros_like(weight)) for number in said.groups()]
        assert told == pytest.approx(errors, rel=0.01)

    def test_fewer_tokens_than_inputs_leave_the_inner_result(self):
        weight, x = drawn(8, 16), correlated(16, tokens=15)
        pruned, before = (one(weight, both_of(x), Keep(50), PLACE) for one in (Refit(Swap()), Wanda()))
        assert torch.equal(pruned.weight, before.weight)
        assert pruned.notes == (
            "fewer tokens than inputs are too few to swap by, so the inner result is kept",
            "fewer tokens than inputs are too few to refit by, so the inner result is kept",
        )

    def test_what_is_refitted_carries_the_inner_notes(self):
        weight, x = drawn(8, 16), correlated(16, tokens=10).repeat(2, 1)
        inner = SparseGPT(damping=0.0)  # which ten different tokens make it raise
        (note,) = inner(weight, both_of(x), Keep(50), PLACE).notes
        assert Refit(inner)(weight, both_of(x), Keep(50), PLACE).notes == (note,)


class Wrong:
    needs = ()

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, weight, seen, budget, layer):
        return self.answer(weight)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda weight: weight, "the inner pruner Wrong returned tensor"),
        (
            lambda weight: Pruned(weight > 99, weight * 0),
            "Wrong kept 0 weights where the plan keeps 16",
        ),
        (lambda weight: Pruned(weight.T > 0, weight), r"Wrong returned a mask of torch.bool \(8, 4\) for a weight of"),
        (lambda weight: 1 / 0, "the inner pruner Wrong raised ZeroDivisionError"),
    ],
)
def test_an_inner_pruner_is_held_to_its_contract(answer, said):
    with pytest.raises(EcoflapError, match=said) as raised:
        Refit(Wrong(answer))(drawn(4, 8), both_of(correlated(8)), Keep(16), PLACE)
    assert isinstance(raised.value, ModelError) or "raised" in said


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"steps": 0}, "steps is 0"), ({"damping": -1.0}, "damping is -1"), ({"damping": float("inf")}, "damping is inf")],
)
def test_parameters_that_cannot_be(parameters, said):
    with pytest.raises(EcoflapError, match=said):
        Refit(**parameters)
