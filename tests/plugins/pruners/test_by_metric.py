from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gram_layers import both_of, correlated, drawn, kept_by, layers
from hypothesis import given, settings
from one_layer import PLACE
from plan_contexts import context

from ecoflap import load_registry
from ecoflap.core.budget.counts import Keep, Pattern
from ecoflap.core.errors import EcoflapError, RecipeError
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.statistics.column_norm import ColumnNorm
from ecoflap.core.statistics.regional_gradient import RegionalGradient
from ecoflap.plugins.metrics.magnitude import Magnitude as Size
from ecoflap.plugins.metrics.multiflow import Multiflow
from ecoflap.plugins.metrics.ria import Ria
from ecoflap.plugins.metrics.wanda import Wanda as WandaMetric
from ecoflap.plugins.metrics.wanda_plus_plus import WandaPlusPlus
from ecoflap.plugins.pruners.by_metric import ByMetric, ecoflap_register_pruners
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.wanda import Wanda


def test_is_offered():
    assert ecoflap_register_pruners() == {"by_metric": ByMetric}
    assert ByMetric(Size()).compare == "row"


def test_it_needs_what_its_metric_needs():
    assert ByMetric(Size()).needs == ()
    assert ByMetric(Ria()).needs == (ColumnNorm,)
    assert ByMetric(WandaPlusPlus()).needs == (ColumnNorm, RegionalGradient)


@settings(max_examples=60)
@given(layers())
def test_it_is_wanda_and_magnitude_by_their_metrics(layer):
    weight, x, budget = layer
    for compare in ("row", "layer"):
        for metric, pruner in ((WandaMetric(), Wanda(compare)), (Size(), Magnitude(compare))):
            ours, theirs = (one(weight, both_of(x), budget, PLACE) for one in (ByMetric(metric, compare), pruner))
            assert ours.mask.sum() == kept_by(budget, weight)
            assert torch.equal(ours.mask, theirs.mask)
            assert torch.equal(ours.weight, theirs.weight)


def multiflow_by_hand(weight, x):
    flow = np.abs(weight) * np.linalg.norm(x, axis=0)
    return np.abs(weight) * flow.mean(1, keepdims=True) * flow.mean(0, keepdims=True)


def ria_by_hand(weight, x):
    sizes = np.abs(weight)
    shares = sizes / sizes.sum(1, keepdims=True) + sizes / sizes.sum(0, keepdims=True)
    return shares * np.sqrt(np.linalg.norm(x, axis=0))


BY_HAND = {"ria": (Ria(), ria_by_hand), "multiflow": (Multiflow(), multiflow_by_hand)}
COMPARED = {"row": 24, "layer": 1, "pattern": 24 * 8}
"""How many groups of weights there are that compete with each other, of 24 rows of 32; by a pattern runs of four do."""


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("metric", BY_HAND)
def test_the_largest_of_those_that_compete_are_kept(metric, compared):
    weight, x = drawn(24, 32), correlated(32)
    ours, by_hand = BY_HAND[metric]
    if compared == "pattern":
        mask = ByMetric(ours)(weight, both_of(x), Pattern(2, 4), PLACE).mask
    else:
        mask = ByMetric(ours, compared)(weight, both_of(x), Keep(24 * 16), PLACE).mask
    competing = by_hand(weight.double().numpy(), x.double().numpy()).reshape(COMPARED[compared], -1)
    kept = np.zeros_like(competing, dtype=bool)
    for group, values in zip(kept, competing, strict=True):
        group[np.argsort(values)[len(values) // 2 :]] = True
    assert mask.numpy().tolist() == kept.reshape(24, 32).tolist()


@dataclass(frozen=True)
class Answers:
    """A metric that gives whatever it is told to, and has something against every use."""

    answer: Any = None
    needs: ClassVar[tuple[type, ...]] = ()

    def __call__(self, weight, seen):
        return self.answer(weight)

    def problems(self, context):
        yield "not here"


def test_it_passes_on_the_problems_of_its_metric():
    assert list(ByMetric(Answers()).problems(context())) == ["not here"]
    assert list(ByMetric(Size()).problems(context())) == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda weight: weight.T, r"the metric Answers gave torch.float32 of \(8, 4\); it gives one floating-point"),
        (lambda weight: weight > 0, r"Answers gave torch.bool of \(4, 8\)"),
        (lambda weight: 3, "the metric Answers gave 3; it gives one"),
        (lambda weight: weight.abs().to(torch.float8_e4m3fn), "gave torch.float8_e4m3fn of .* in 16 bits or more"),
        (lambda weight: weight.to("meta"), "the metric Answers gave a tensor on meta; the layer is on cpu"),
        (
            lambda weight: weight.to_sparse(),
            "the metric Answers gave a tensor that is sparse_coo; a dense one",
        ),
        (lambda weight: 1 / 0, r"the metric Answers raised ZeroDivisionError.* It happened in test_by_metric\.py"),
        (lambda weight: weight / 0, "the metric Answers gave NaN or infinite numbers for weights that are finite"),
    ],
)
def test_a_metric_is_held_to_its_contract(answer, said):
    with pytest.raises(EcoflapError, match=said):
        ByMetric(Answers(answer))(drawn(4, 8), both_of(correlated(8)), Keep(16), PLACE)


def test_a_metric_is_not_blamed_for_weights_that_are_not_finite():
    weight = drawn(4, 8)
    weight[0, 0] = torch.nan
    with pytest.raises(EcoflapError, match="the weights or the layer's inputs are not finite"):
        ByMetric(Size())(weight, both_of(correlated(8)), Keep(16), PLACE)


def test_a_metric_of_a_pattern():
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0, -5.0, 6.0, 7.0, -8.0]])
    inverse = ByMetric(Answers(lambda weight: 1 / weight.abs()))
    mask = inverse(weight, both_of(correlated(8)), Pattern(2, 4), PLACE).mask
    assert mask.tolist() == [[False, False, True, True, True, True, False, False]]


class TestInARecipe:
    def read(self, tmp_path, prune, **keys):
        (tmp_path / "t.txt").write_text("a text")
        data = "calibration: {use: text, path: t.txt, samples: 1}"
        (tmp_path / "r.yaml").write_text(f"version: 1\nmodel: m\nsparsity: 0.5\n{data}\nprune: {prune}\n")
        return load_recipe(tmp_path / "r.yaml", registry=load_registry(installed=False, **keys))

    def test_a_metric_is_a_part(self, tmp_path):
        spec = self.read(tmp_path, "{use: by_metric, metric: {use: wanda, alpha: 0.5}}").prune
        assert spec.built == ByMetric(WandaMetric(0.5))
        assert spec.plain() == {"use": "by_metric", "metric": {"use": "wanda", "alpha": 0.5}, "compare": "row"}
        assert spec.options.needs == (ColumnNorm,)

    def test_one_that_is_misspelt(self, tmp_path):
        with pytest.raises(RecipeError, match=r"r\.yaml:5.*no metric named 'rai'. Did you mean 'ria'"):
            self.read(tmp_path, "{use: by_metric, metric: rai}")

    def test_one_by_import_path(self, tmp_path, monkeypatch):
        code = "class Cubes:\n    def __call__(self, weight, seen):\n        return weight.abs() ** 3\n"
        (tmp_path / "cubes.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(RecipeError, match="the metric 'cubes:Cubes' is an import path, and code runs here only"):
            self.read(tmp_path, "{use: by_metric, metric: 'cubes:Cubes'}")
        pruner = self.read(tmp_path, "{use: by_metric, metric: 'cubes:Cubes'}", allow_code=True).prune.built
        weight = drawn(4, 8)
        ours, theirs = (one(weight, both_of(correlated(8)), Keep(16), PLACE) for one in (pruner, Magnitude("row")))
        assert torch.equal(ours.mask, theirs.mask)

    def test_nested_pruners(self, tmp_path):
        spec = self.read(tmp_path, "{use: refit, inner: {use: swap, inner: {use: by_metric, metric: ria}}}").prune
        assert [need.__name__ for need in spec.options.needs] == ["ColumnNorm", "Gram"]
        assert spec.built.inner.inner == ByMetric(Ria())
