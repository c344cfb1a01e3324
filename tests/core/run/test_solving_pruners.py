"""Whole runs by the pruners that solve, nest or are given a metric: the plan holds on the files."""

import pytest
import torch
from safetensors.torch import load_file

import ecoflap
from ecoflap.core.pruning.masks import read_masks

PRUNERS = {
    "admm": "admm",
    "alps": "alps",
    "metric": {"use": "by_metric", "metric": {"use": "wanda_plus_plus"}},
    "gradient": {"use": "by_metric", "metric": "magnitude_gradient"},
    "nested": {"use": "refit", "inner": {"use": "swap", "inner": {"use": "by_metric", "metric": "ria"}}},
    "dsnot": {"use": "dsnot", "inner": {"use": "by_metric", "metric": "wanda"}},
    "exact": {"use": "refit", "solver": "exact", "inner": "sparsegpt"},
}


@pytest.mark.parametrize("sparsity", [0.61, "2:4"])
@pytest.mark.parametrize("name", PRUNERS)
def test_the_plan_holds_on_the_files(plain, tmp_path, name, sparsity):
    run = ecoflap.run(plain(prune=PRUNERS[name], sparsity=sparsity, score=None, export=None), folder=tmp_path / "run")
    masks, model = (
        read_masks(run.folder / "masks.safetensors"),
        load_file(run.folder / "model" / "model.safetensors"),
    )
    assert set(masks) == set(run.plan.layers)
    for layer, mask in masks.items():
        assert int(mask.sum()) == run.plan.layers[layer].keep, layer
        assert not model[layer][~mask].any(), layer
        assert sparsity != "2:4" or bool((mask.reshape(-1, 4).sum(1) == 2).all()), layer
    assert sum(int(mask.sum()) for mask in masks.values()) == run.plan.keep
    assert run.report.warnings == ()


def test_too_few_tokens_are_told_of_by_layer(plain, pico, tmp_path):
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 1}
    done = [
        ecoflap.run(plain(prune=prune, calibration=text, score=None, export=None), folder=tmp_path / name)
        for name, prune in (("refit", "refit"), ("wanda", "wanda"))
    ]
    warnings = [one for one in done[0].report.warnings if "tokens for" in one]
    assert any(
        one.endswith("16 tokens for 32 inputs are too few to refit by, so the inner result is kept") for one in warnings
    )
    assert all(one.startswith("model.layers.") for one in warnings)
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in done)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
