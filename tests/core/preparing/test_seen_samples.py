"""A measure by samples that the model may have been pruned by is said to be one, and no other is."""

import pytest

import ecoflap
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.preparing.seen_samples import seen_samples
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry


def recipe_of(folder, calibration, measured, **keys):
    """Give a recipe that prunes by some windows of a text and measures by others."""
    text = folder / "text.jsonl"
    text.write_text(
        "\n".join(f'{{"text": "{" ".join(f"w{(row + at) % 40}" for at in range(60))}"}}' for row in range(20))
    )
    windows = {"use": "text", "path": str(text), "samples": 2, "sequence_length": 8}
    return {
        "version": 1,
        "model": {"source": str(folder / "llama")},
        "calibration": windows | calibration,
        "sparsity": 0.5,
        "prune": "wanda",
        "evaluate": {"use": "perplexity", "data": windows | measured},
        **keys,
    }


@pytest.mark.parametrize(
    ("calibration", "measured", "seen"),
    [
        ({}, {}, True),
        ({}, {"order": "spread", "samples": 3, "seed": 7, "sequence_length": 12}, True),
        ({"portion": [0, 0.7]}, {"portion": [0.6, 1]}, True),
        ({"portion": [0, 0.7]}, {}, True),
        ({"portion": [0, 0.7]}, {"portion": [0.7, 1]}, False),
        ({"portion": [0.5, 1]}, {"portion": [0, 0.5]}, False),
        ({}, {"path": None}, False),  # the articles that ship
        ({}, {"column": "title"}, False),
    ],
)
def test_the_same_rows(tmp_path, calibration, measured, seen):
    said = seen_samples(parse_recipe(recipe_of(tmp_path, calibration, measured), registry=load_registry()))
    assert len(said) == seen
    if seen:
        assert said[0].startswith("evaluate.0.data draws from the rows that calibration draws from")
        assert "portion: [0.7, 1]" in said[0]


def test_what_scores_is_seen_too(tmp_path):
    halves = {"portion": [0, 0.5]}, {"portion": [0.5, 1]}
    score = {"use": "zeroth_order", "samples": 2}
    recipe = recipe_of(tmp_path, *halves, score=score, allocate="ecoflap")
    assert seen_samples(parse_recipe(recipe, registry=load_registry())) == []
    score["calibration"] = recipe["calibration"] | halves[1]
    (said,) = seen_samples(parse_recipe(recipe, registry=load_registry()))
    assert "that score.calibration draws from" in said


def test_nothing_is_seen_without_data(tmp_path):
    recipe = recipe_of(tmp_path, {}, {}, prune="magnitude")
    del recipe["calibration"]
    assert seen_samples(parse_recipe(recipe, registry=load_registry())) == []


def test_plan_and_run_say_it(tmp_path, pico_llama_folder):
    (tmp_path / "llama").symlink_to(pico_llama_folder)
    recipe, registry = recipe_of(tmp_path, {}, {}), load_registry()
    titles = [section.title for section in plan_tables(parse_recipe(recipe, registry=registry), registry)]
    assert "seen" in titles
    report = ecoflap.run(recipe, folder=tmp_path / "run").report
    assert any("draws from the rows" in note for note in report.warnings)
