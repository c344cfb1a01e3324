"""What best_of refuses before anything is tried; the trials themselves are the engine's."""

from dataclasses import dataclass
from typing import Any

import pytest
from plan_contexts import context
from spec import spec

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.budget.counts import Group
from ecoflap.core.errors import EcoflapError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.recipe.schema import CalibrationKeys
from ecoflap.core.registry.registry import load_registry
from ecoflap.plugins.allocators.best_of import BestOf, ecoflap_register_allocators
from ecoflap.plugins.allocators.ecoflap import Ecoflap
from ecoflap.plugins.allocators.marginal import Marginal
from ecoflap.plugins.allocators.owl import Owl
from ecoflap.plugins.allocators.uniform import Uniform


def test_is_offered():
    assert ecoflap_register_allocators() == {"best_of": BestOf}


@pytest.mark.parametrize(
    ("of", "takes"),
    [((Uniform(), Ecoflap(), Owl()), "number"), ((Uniform(), Marginal()), "curve"), ((Uniform(),) * 2, None)],
)
def test_it_takes_what_its_candidates_take(of, takes):
    best = BestOf(of)
    assert (best.takes, best.candidates) == (takes, of)
    groups = [Group("a", 10, 1.0), Group("b", 30, 2.0)]
    assert best(groups, 20) == [5, 15]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"of": (Uniform(),)}, "of has 1 candidates; name two or more"),
        ({"of": (Ecoflap(), Marginal())}, "of has candidates that look at curves and numbers;"),
        ({"of": (Uniform(), BestOf((Uniform(), Owl())))}, "of has a best_of among its candidates"),
        ({"of": (), "tokens": ("real", "text")}, "of has 0 candidates"),
        ({"of": (Uniform(), Owl()), "tokens": ("text",)}, r"tokens is \[text\]; name two or more that differ"),
        ({"of": (Uniform(),), "tokens": ("text", "text")}, r"tokens is \[text, text\]; name two or more that differ"),
        ({"of": (Uniform(), Owl()), "held_out": 1.0}, r"held_out is 1\.0; it is a share"),
    ],
)
def test_what_cannot_be_tried_is_refused(wrong, told):
    with pytest.raises(EcoflapError, match=told):
        BestOf(**wrong)


@dataclass
class Asks:
    """A recipe of which only the calibration data and tokens are looked at."""

    calibration: Any
    tokens: str = "real"


@dataclass(frozen=True)
class Data:
    """A dataset that nobody reads."""

    samples: int | None

    def __call__(self, adapter, model, note):
        yield from ()


@pytest.mark.parametrize(("samples", "size", "told"), [(8, 8, "8 samples in batches of 8 are one"), (9, 8, None)])
def test_a_plan_hears_of_too_few_batches(samples, size, told):
    data = CalibrationKeys(data=spec("dataset", Data(samples)), batch_size=size)
    problems = list(BestOf((Uniform(), Owl())).problems(context(recipe=Asks(data))))
    assert [told in problem for problem in problems] == ([True] if told else [])
    (problem,) = BestOf((Uniform(), Owl())).problems(context(recipe=Asks(None)))
    assert "the recipe has none: add calibration:" in problem


@pytest.mark.parametrize(("tokens", "told"), [("real", 0), ("all", 1)])
def test_a_recipe_does_not_say_the_tokens_that_are_to_be_tried(tokens, told):
    data = CalibrationKeys(data=spec("dataset", Data(8)))
    asked = context(recipe=Asks(data, tokens))
    problems = list(BestOf((Uniform(),), tokens=("real", "text")).problems(asked))
    assert len(problems) == told
    assert all("it tries real, text tokens, and the recipe has tokens: all" in problem for problem in problems)
    assert not list(BestOf((Uniform(), Owl())).problems(asked))


def test_trials_are_refined_where_there_is_a_refiner_of_blocks_alone(pico_llama):
    """A tower's own refiners stand in the place of those that all share, also where they are none."""
    adapter, model = LlamaAdapter(), pico_llama()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    towers = [one.name for one in anatomy.towers if one.prunable]
    best = {"use": "best_of", "of": ["uniform", "owl"], "refine": True}
    keys = {
        "version": 1, "model": "of-nobody", "sparsity": 0.5, "calibration": {"use": "text", "samples": 16},
        "score": "outlier_share", "allocate": best, "prune": "wanda",
    }  # fmt: skip
    for refine, own, told in (
        ([], {}, 1),
        (["distill"], {"prune": "magnitude"}, 1),
        (["reconstruct"], "keep", 1),
        (["reconstruct"], {"refine": []}, 1),
        (["distill", "reconstruct"], {}, 0),
        (["distill", "reconstruct"], {"prune": "magnitude"}, 0),
        ([], {"refine": ["reconstruct"]}, 0),
    ):
        asked = {**keys, "refine": refine, "towers": dict.fromkeys(towers, own) if own else {}}
        recipe = parse_recipe(asked, registry=load_registry())
        problems = list(recipe.allocate.options.problems(context(recipe=recipe, anatomy=anatomy)))
        assert len(problems) == told
        assert all("it has refine: true, and the recipe has no refiner of blocks" in problem for problem in problems)
