"""What a scorer gives and an allocator takes have to agree; nothing is loaded to see it."""

import pytest
from sealed_by_hand import write_lines

from ecoflap import Curve
from ecoflap.core.errors import RecipeError
from ecoflap.core.pruning.scores import header_line, score_line
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

REGISTRY = load_registry(installed=False)
RECIPE = """\
version: 1
model: m
sparsity: 0.5
prune: magnitude
calibration: {use: text, path: a}
score: SCORE
"""


def read(score, allocate=None):
    text = RECIPE.replace("SCORE", score) + (f"allocate: {allocate}\n" if allocate else "")
    return parse_recipe(text, registry=REGISTRY, file="r.yaml")


@pytest.mark.parametrize(
    ("score", "allocate", "said"),
    [
        (
            "hill",
            "marginal",
            "marginal looks at scores that are curves, and hill gives numbers. Scorers that give curves: from_run, "
            "sensitivity. Allocators that take numbers: alpha, best_of, ecoflap, owl.",
        ),
        (
            "sensitivity",
            "owl",
            "owl looks at scores that are numbers, and sensitivity gives curves. Scorers that give numbers: "
            "first_order, from_run, hill, local_metric, magnitude, outlier_share, token_diversity, "
            "zeroth_order. "
            "Allocators that take curves: best_of, marginal.",
        ),
        (
            "{use: weight_metric, metric: wanda}",
            "ecoflap",
            "ecoflap looks at scores that are numbers, and weight_metric gives numbers a weight. Scorers that give "
            "numbers: first_order, from_run, hill, local_metric, magnitude, outlier_share, "
            "token_diversity, zeroth_order. Allocators that take numbers a weight: best_of, threshold.",
        ),
        (
            "hill",
            "threshold",
            "threshold looks at scores that are numbers a weight, and hill gives numbers. Scorers that give numbers a "
            "weight: from_run, weight_metric. Allocators that take numbers: alpha, best_of, ecoflap, owl.",
        ),
    ],
)
def test_numbers_and_curves_are_not_taken_for_each_other(score, allocate, said):
    with pytest.raises(RecipeError) as caught:
        read(score, allocate)
    assert caught.value.problems == (f"r.yaml:7:11: allocate: {said}",)


@pytest.mark.parametrize("allocate", ["uniform", "{use: atp, beta: 0.01}"])
def test_an_allocator_that_takes_none_goes_with_all(allocate):
    assert not read("sensitivity", allocate).takes_scores


@pytest.mark.parametrize(
    ("score", "allocate", "granularity"),
    [
        ("sensitivity", "marginal", "block"),
        ("hill", "ecoflap", "block"),
        ("{use: weight_metric, metric: magnitude}", "threshold", "layer"),
        ("{use: weight_metric, metric: magnitude, granularity: tower}", "threshold", "tower"),
    ],
)
def test_what_divides_a_budget_among_what_follows_from_the_scorer_where_nothing_is_said(score, allocate, granularity):
    recipe = read(score)
    assert (recipe.allocate.use, recipe.score.granularity) == (allocate, granularity)


def test_what_is_taken_over_gives_what_it_is(tmp_path):
    write_lines(
        tmp_path / "scores.jsonl", [header_line("block", "sum"), score_line("a", Curve((0.4, 0.6), (1.0, 2.0)))]
    )
    taken = f"{{use: from_run, run: {tmp_path}}}"
    assert read(taken).allocate.use == "marginal"
    with pytest.raises(RecipeError, match="ecoflap looks at scores that are numbers, and from_run gives curves"):
        read(taken, "ecoflap")
    # Where it cannot be read, the scorer itself says why before a run, and nothing is guessed here.
    nowhere = f"{{use: from_run, run: {tmp_path / 'nowhere'}}}"
    assert read(nowhere, "marginal").allocate.use == "marginal"
