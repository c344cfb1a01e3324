"""The scorer ``global_threshold`` and numbers of single weights come to the same plans and masks, bit by bit."""

import pytest
from table import row_of

import ecoflap

BY_GRADIENTS = {"use": "by_metric", "metric": "magnitude_gradient", "compare": "layer"}
CASES = {
    "magnitude": ({}, {}, "magnitude"),
    "magnitude in rounds": ({}, {}, "magnitude"),
    "gradient": ({"measure": "magnitude_gradient", "steps": 1, "samples": 4}, {}, BY_GRADIENTS),
    "gradient in rounds": ({"measure": "magnitude_gradient", "steps": 1, "samples": 4}, {}, BY_GRADIENTS),
    "multiflow": (
        {"each": "tower"},
        {"each": "tower"},
        {"use": "by_metric", "metric": "multiflow", "compare": "layer"},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sparsity", [0.5, 0.63])
def test_masks_are_those_of_before(plain, name, sparsity, tmp_path):
    before, now, pruner = CASES[name]
    measure = {"use": "weight_metric", "metric": before.get("measure", "magnitude"), "samples": 4}
    old = {
        "score": {"use": "global_threshold", "sparsity": sparsity, "granularity": "layer", **before},
        "allocate": {"use": "ecoflap", "max_sparsity": 1.0},
    }
    new = {"score": measure, "allocate": {"use": "threshold", **now}}
    rounds = {"rounds": 3} if "rounds" in name else {}
    runs = [
        ecoflap.run(
            plain(sparsity=sparsity, prune=pruner, evaluate=None, export=None, **rounds, **keys),
            folder=tmp_path / folder,
        )
        for folder, keys in (("old", old), ("new", new))
    ]
    kept = [{layer: one.keep for layer, one in run.plan.layers.items()} for run in runs]
    assert kept[0] == kept[1]
    assert len(set(kept[0].values())) > 5
    masks = [(run.folder / "masks.safetensors").read_bytes() for run in runs]
    weights = [(run.folder / "model" / "model.safetensors").read_bytes() for run in runs]
    assert masks[0] == masks[1]
    assert weights[0] == weights[1]


def test_towers_keep_the_same_by_thresholds_of_their_own(tmp_path):
    old = {
        "score": {"use": "global_threshold", "sparsity": 0.5, "each": "tower", "granularity": "layer"},
        "allocate": {"use": "ecoflap", "max_sparsity": 1.0},
    }
    new = {"score": {"use": "weight_metric", "metric": "magnitude"}, "allocate": {"use": "threshold", "each": "tower"}}
    kept = []
    for keys in (old, new):
        recipe = {"version": 1, "sparsity": 0.5, "prune": "magnitude", **keys}
        run = ecoflap.run(recipe, model=row_of("clip").build(), folder=tmp_path / str(len(kept)))
        kept.append({layer: one.keep for layer, one in run.plan.layers.items()})
    assert kept[0] == kept[1]
