"""Masks of elsewhere on a model of several towers, of which the Q-Former is kept by default."""

import pytest
import torch
from safetensors.torch import save_file
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
    data = {"use": "table:Samples", "row": "blip2_t5", "samples": 4, "batch_size": 2}
    registry = load_registry().trusting(True)

    def prepared(**keys):
        recipe = parse_recipe({"version": 1, "calibration": data, **keys}, registry=registry, in_memory=True)
        return prepare(recipe, registry, model, processor, planning=True)

    return prepared


@pytest.fixture
def masks(prepared, tmp_path):
    """Writes masks of all layers, which keep all but the first weight of each layer of the towers named."""

    def masks(*pruned):
        found = {}
        for block, layer in prepared(prune="magnitude", sparsity=0.5).anatomy.layers():
            mask = found[layer.name] = torch.ones(layer.as_stored(layer.weight).shape, dtype=torch.bool)
            mask.flatten()[0] = block.tower not in pruned
        file = tmp_path / "published.safetensors"
        save_file(found, file)
        return {"use": "from_masks", "path": str(file)}

    return masks


def test_masks_that_prune_a_tower_that_is_kept_by_default_are_refused_until_the_recipe_says_what_it_wants(
    prepared, masks
):
    prune = masks(*PRUNED, "qformer")
    with pytest.raises(RecipeError) as refused:
        prepared(prune=prune)
    (told,) = refused.value.problems
    count = len(list(prepared(prune=prune, include=["qformer"]).anatomy.layers())) - len(
        prepared(prune=prune, towers={"qformer": "keep"}).pools[0].layers
    )
    assert told == (
        f"prune: {prune['path']}: it prunes {count} layers of the tower qformer, which is kept whole by default. Prune "
        "it here too, by include: [qformer], or have it stay whole, by towers: {qformer: keep}"
    )
    assert prepared(prune=prune, include=["qformer"]).pruned_towers == ["vision", "qformer", "encoder", "decoder"]
    assert prepared(prune=prune, towers={"qformer": "keep"}).pruned_towers == PRUNED


def test_masks_that_leave_a_tower_whole_that_is_kept_by_default_are_taken(prepared, masks):
    assert prepared(prune=masks(*PRUNED)).pruned_towers == PRUNED


def test_masks_of_one_tower_alone_are_refused_with_what_helps(prepared, masks):
    own = {"prune": "magnitude", "towers": {"vision": {"prune": masks(*PRUNED)}}}
    with pytest.raises(RecipeError) as refused:
        prepared(**own, sparsity=0.5)
    (told,) = refused.value.problems
    assert told == (
        "towers.vision.prune: it keeps as many weights as the masks do, and the recipe allocates by uniform, for the "
        "other towers are pruned by magnitude. Masks are for all towers or for none: write them under prune:; or let "
        "the other towers keep as many weights as their masks do, by allocate: {use: from_masks, path: …} without "
        "sparsity; or write a pattern that the masks keep"
    )
    kept = prepared(**own, allocate=masks(*PRUNED))
    assert kept.pools[0].sparsity * kept.pools[0].size == len(kept.pools[0].layers)  # a weight of each layer goes
    with pytest.raises(RecipeError, match=r"prune: it keeps .* by uniform: leave allocate and sparsity out"):
        prepared(prune=masks(*PRUNED), allocate="uniform", sparsity=0.5)
