"""What the rows of ``benchmarks/methods.py`` set in recipes, where the meaning of a figure hangs on it."""

from pathlib import Path

import pytest

import ecoflap
from ecoflap.core.budget.counts import Group
from ecoflap.core.recipe.load import find_recipe, load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAYERS = {
    "smollm2": 30,
    "gemma3": 18,
    "blip2": 4,
    "clip": 4,
    "vision": 4,
    "llava": 30,
    "llava-vision": 11,
    "llava-language": 30,
}
"""Blocks of the deepest tower of each model, at least."""


@pytest.mark.parametrize("sparsity", ["0.6", "0.37"])
def test_with_jitter_each_layer_keeps_one_weight_less(sparsity, pico_llama, pico_tokenizer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from methods import Row

    kept = []
    for row in (Row("blip2", "magnitude", sparsity, 0, jitter=jitter) for jitter in (False, True)):
        given = {"model": pico_llama(), "processor": pico_tokenizer, "folder": tmp_path / row.name}
        run = ecoflap.run({"version": 1, "prune": "magnitude"}, set_=row.settings(tmp_path), **given)
        kept.append({name: layer.keep for name, layer in run.plan.layers.items()})
    assert kept[1] == {name: keep - 1 for name, keep in kept[0].items()}


@pytest.mark.parametrize(
    "model", [pytest.param(one, marks=() if one in ("smollm2", "llava") else pytest.mark.slow) for one in LAYERS]
)
def test_what_each_row_sets_is_valid_in_its_recipe(model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)  # where the text is written that language models are measured on
    from methods import METHODS, rows

    registry = ecoflap.load_registry(installed=False)
    done = [row for row in rows(model, ["0.7"], [0], METHODS, None) if not row.jitter]
    assert len(done) > 40
    for row in done:
        recipe = load_recipe(find_recipe(row.recipe), set_=row.settings(tmp_path), registry=registry)
        assert (recipe.seed, str(recipe.sparsity)) == (0, "0.7")
        if row.method.startswith("atp"):
            groups = [Group(f"b{number}", 100, 0.0) for number in range(LAYERS[model])]
            plans = [allocator(groups, 30 * len(groups)) for allocator in recipe.allocate.built.of]
            assert len({tuple(plan) for plan in plans}) == len(plans) >= 3  # none is refused, and each is another
        assert ("tokens" in row.method) == (recipe.tokens != "real" or bool(recipe.allocate.options.tokens))


def test_texts_are_what_a_language_model_is_measured_by_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    from methods import rows, table

    texts = [tmp_path / "verse.txt", tmp_path / "law.txt"]
    (row,) = rows("smollm2", ["2:4"], [1], ["wanda"], None, texts)
    settings = row.settings(tmp_path)
    recipe = load_recipe(find_recipe(row.recipe), set_=settings, registry=ecoflap.load_registry(installed=False))
    assert [one.parameters["data"].parameters["path"] for one in recipe.evaluate] == texts
    assert row.name == "smollm2-wanda-2of4-1-texts"
    line = {"model": "smollm2", "sparsity": "2:4", "method": "wanda", "jitter": False, "cpu_seconds": 1}
    line |= {"peak_megabytes": 2, "dense": {"perplexity": 3}, "pruned": {"perplexity": 4}}
    titles = [one.strip() for one in table([line, {**line, "texts": ["verse.txt"]}]) if "dense:" in one]
    assert titles == ["smollm2, 2:4; dense: perplexity 3", "smollm2, 2:4, verse.txt; dense: perplexity 3"]
