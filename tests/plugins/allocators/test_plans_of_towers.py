"""Plans of elsewhere on a model of several towers, of which the Q-Former is kept by default."""

import json

import pytest
from table import ROWS

from ecoflap.core.errors import RecipeError
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

pytestmark = pytest.mark.skipif("blip2_t5" not in ROWS, reason="this environment has no BLIP-2")
PRUNED = ["vision", "encoder", "decoder"]


@pytest.fixture(scope="module")
def prepared():
    """Prepares a recipe on a BLIP-2 in memory."""
    model, processor = ROWS["blip2_t5"].build(), ROWS["blip2_t5"].adapter().processor
    registry = load_registry().trusting(True)

    def prepared(**keys):
        source = {"version": 1, "prune": "magnitude", **keys}
        recipe = parse_recipe(source, registry=registry, in_memory=True)
        return prepare(recipe, registry, model, processor, planning=True)

    return prepared


@pytest.fixture
def plan(prepared, tmp_path):
    """Writes a plan that keeps all but one weight of each layer of the towers named."""

    def plan(*pruned):
        layers = prepared(sparsity=0.5).anatomy.layers()
        found = {
            layer.name: {"size": layer.size, "keep": layer.size - (block.tower in pruned)} for block, layer in layers
        }
        file = tmp_path / "plan.json"
        file.write_text(json.dumps({"layers": found}))
        return {"use": "from_file", "path": str(file)}

    return plan


def test_a_plan_that_prunes_a_tower_that_is_kept_by_default_is_refused_until_the_recipe_says_what_it_wants(
    prepared, plan
):
    allocate = plan(*PRUNED, "qformer")
    with pytest.raises(RecipeError) as refused:
        prepared(allocate=allocate)
    (told,) = refused.value.problems
    count = sum(block.tower == "qformer" for block, _ in prepared(sparsity=0.5).anatomy.layers())
    assert told == (
        f"allocate: {allocate['path']}: it prunes {count} layers of the tower qformer, which is kept whole by default. "
        "Prune it here too, by include: [qformer], or have it stay whole, by towers: {qformer: keep}"
    )
    assert prepared(allocate=allocate, include=["qformer"]).pruned_towers == ["vision", "qformer", "encoder", "decoder"]
    assert prepared(allocate=allocate, towers={"qformer": "keep"}).pruned_towers == PRUNED


def test_a_plan_that_prunes_what_is_not_included_here_is_refused(prepared, plan, tmp_path):
    allocate = plan(*PRUNED)
    layers = json.loads((tmp_path / "plan.json").read_text())["layers"]
    head = "language_model.lm_head.weight"
    layers[head] = {"size": 32, "keep": 16}
    (tmp_path / "plan.json").write_text(json.dumps({"layers": layers}))
    with pytest.raises(RecipeError) as refused:
        prepared(allocate=allocate)
    assert refused.value.problems == (
        f"allocate: {allocate['path']}: it prunes what is no layer here: {head}. Name under include: what may be "
        "pruned; or name a copy without its seal and without these",
    )
    layers[head]["keep"] = 32
    (tmp_path / "plan.json").write_text(json.dumps({"layers": layers}))
    assert prepared(allocate=allocate).pruned_towers == PRUNED


def test_a_plan_that_leaves_a_tower_whole_that_is_kept_by_default_is_taken(prepared, plan):
    assert prepared(allocate=plan(*PRUNED)).pruned_towers == PRUNED
