"""A problem that shows against the model is told with the line and the column of its key."""

import pytest

from ecoflap.core.errors import RecipeError
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

TEXT = """\
version: 1
model: {model}
sparsity: 0.5
allocate: uniform
prune: magnitude
towers:
  vision:
    sparsity: 0.6
evaluate: perplexity
"""


@pytest.fixture
def refused(pico_llama_folder):
    def told(text=TEXT, set_=()):
        registry, text = load_registry(), text.format(model=pico_llama_folder)
        recipe = parse_recipe(text, set_=set_, registry=registry, file="of/mine.yaml")
        with pytest.raises(RecipeError) as caught:
            prepare(recipe, registry)
        return caught.value.problems

    return told


def test_a_tower_that_the_model_lacks_is_told_where_it_is_written(refused):
    text = TEXT.replace("evaluate: perplexity\n", "")
    (told,) = refused(text)
    assert told.startswith("of/mine.yaml:8:5: towers.vision: this model has no such tower.")


def test_one_that_was_set_is_told_with_its_setting(refused):
    text = TEXT.replace("evaluate: perplexity\n", "").replace("vision", "language")
    (told,) = refused(text, ["include=[visions]"])
    assert told.startswith("--set include=[visions]")
    assert ": include: " in told


def test_a_part_alone_stands_at_its_key(pico_llama_folder):
    text = "version: 1\nmodel: a\nsparsity: 0.5\nprune: magnitude\n"
    recipe = parse_recipe(text, registry=load_registry(), file="mine.yaml")
    assert recipe.placed("prune.inner: it has none.") == "mine.yaml:4:8: prune.inner: it has none."
    assert recipe.placed("allocate: it was not written.") == "allocate: it was not written."
    assert recipe.placed("model.layers.3: a layer, not a key.") == "model.layers.3: a layer, not a key."
    assert recipe.placed("a sentence without a key") == "a sentence without a key"
    copied = recipe.model_copy(update={"seed": 1})
    assert copied.placed("prune: no.") == "mine.yaml:4:8: prune: no."


def test_recipes_that_say_the_same_are_equal_wherever_they_are_written():
    registry, text = load_registry(), "version: 1\nmodel: a\nsparsity: 0.5\nallocate: uniform\nprune: magnitude\n"
    first, second = (parse_recipe(lines + text, registry=registry, file="mine.yaml") for lines in ("", "\n# two\n"))
    assert first.plain() == second.plain()
    assert first.placed("prune: no.") != second.placed("prune: no.")


def test_what_was_set_inside_of_a_key_is_named_with_it():
    text = "version: 1\nmodel: m\nsparsity: 0.5\nprune: magnitude\ncalibration: {use: text, path: t.txt, samples: 4}\n"
    recipe = parse_recipe(text, set_=["calibration.samples=0"], registry=load_registry(), file="g.yaml")
    told = recipe.placed("calibration: the data has no samples.")
    assert told == "g.yaml:5:14, with --set calibration.samples=0: calibration: the data has no samples."
    assert recipe.placed("prune: no.") == "g.yaml:4:8: prune: no."
    whole = parse_recipe(text, set_=["prune=wanda"], registry=load_registry(), file="g.yaml")
    assert whole.placed("prune: no.") == "--set prune=wanda: prune: no."
