from pathlib import Path

import pytest

from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.recipe.schema import Recipe
from ecoflap.core.registry.registry import load_registry

TEXT = "{use: text, path: ., samples: %s, order: %s, batch_size: %d}"


def recipe(samples: int | None, size: int, score: str = "") -> Recipe:
    order = "random" if samples else "consecutive"
    data = TEXT % (samples or "null", order, size)
    text = f"version: 1\nmodel: m\ncalibration: {data}\nsparsity: 0.5\nprune: wanda\n{score}"
    return parse_recipe(text, registry=load_registry(), file=Path(__file__).with_name("r.yaml"))


@pytest.mark.parametrize(("samples", "size"), [(8, 2), (8, 8), (9, 9), (8, 3), (5, 9), (None, 3)])
def test_batches_of_two_and_more_are_fine(samples: int | None, size: int):
    assert not [*pair_problems(recipe(samples, size))]


@pytest.mark.parametrize(
    ("samples", "size", "problem"),
    [
        (8, 1, "calibration.batch_size is 1, but a contrastive loss compares pairs with each other: set 2 or more."),
        (9, 2, "calibration.batch_size is 2, which leaves one of 9 samples over"),
        (1, 4, "calibration.batch_size is 4, which leaves one of 1 samples over"),
    ],
)
def test_a_batch_of_one_pair_is_told(samples: int, size: int, problem: str):
    (told,) = pair_problems(recipe(samples, size))
    assert told.startswith(problem)


def test_the_scorer_may_look_at_fewer():
    assert not [*pair_problems(recipe(8, 4, "score: {use: zeroth_order, samples: 6}"))]
    (told,) = pair_problems(recipe(8, 4, "score: {use: zeroth_order, samples: 5}"))
    assert told.startswith("calibration.batch_size is 4, which leaves one of 5 samples over")


def test_the_scorer_may_have_data_of_its_own():
    own = TEXT % (4, "random", 1)
    (told,) = pair_problems(recipe(8, 4, f"score: {{use: zeroth_order, calibration: {own}}}"))
    assert told.startswith("score.calibration.batch_size is 1")


def test_an_evaluator_that_reads_one_sample_at_a_time_is_told_without_a_key_that_it_lacks():
    (told,) = pair_problems(recipe(8, 4, "evaluate: {use: perplexity, data: {use: text, path: .}}"))
    assert told == (
        "evaluate.0: perplexity reads one sample at a time, but a contrastive loss compares pairs with each other: "
        "take loss, or retrieval."
    )
    (told,) = pair_problems(recipe(8, 4, "evaluate: {use: loss, batch_size: 1, data: {use: text, path: .}}"))
    assert told.startswith("evaluate.0.batch_size is 1")


def test_the_same_is_not_told_twice():
    assert len([*pair_problems(recipe(8, 1, "score: zeroth_order"))]) == 1


def test_without_data_nothing_is_compared():
    text = "version: 1\nmodel: m\nsparsity: 0.5\nprune: magnitude\n"
    assert not [*pair_problems(parse_recipe(text, registry=load_registry(), file=Path(__file__).with_name("r.yaml")))]
