"""Whole runs by the pruners that solve, nest or are given a metric: the plan holds on the files."""

import pytest
import torch
from safetensors.torch import load_file

import ecoflap
from ecoflap import Pruned
from ecoflap.core.budget.select import kept_only, select
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.statistics.gram import Gram

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


class Own:
    """A pruner of somebody else's, which reads a Gram matrix and says nothing of it."""

    needs = (Gram,)

    def __call__(self, weight, seen, budget, layer):
        mask = select(weight.abs() * seen[Gram].matrix.diagonal().sqrt(), budget)
        return Pruned(mask, kept_only(weight, mask))


@pytest.fixture
def told(plain, pico, tmp_path):
    """Run by a pruner on 16 tokens, or as many windows of them; the report's warnings of few tokens."""

    def told(prune, windows=1, **keys):
        text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": windows}
        recipe = plain(**{"prune": prune, "calibration": text, "score": None, "export": None, "evaluate": None, **keys})
        return [one for one in ecoflap.run(recipe, folder=tmp_path / "run").report.warnings if "tokens for" in one]

    return told


@pytest.mark.parametrize("prune", ["sparsegpt", "admm", "alps", "refit", "swap", Own])
def test_too_few_tokens_are_told_of_once_a_block_whichever_pruner_reads_them(told, prune):
    """A pico LLaMA has three blocks of seven matrices, of 32 inputs and in down_proj of 48."""
    assert told(prune) == [
        f"model.layers.{n}.self_attn.q_proj.weight: 16 tokens for 32 inputs, and those of 6 other layers are few: what "
        f"is solved by them may fit the calibration data alone. Calibrate on more samples, or on longer ones"
        for n in range(3)
    ]


def test_of_a_block_those_layers_are_told_of_that_have_more_inputs_than_tokens(told):
    (first, *_) = told("sparsegpt", windows=2, sequential=True)
    assert first.startswith("model.layers.0.mlp.down_proj.weight: 32 tokens for 48 inputs are few: ")


@pytest.mark.parametrize(("prune", "windows"), [("wanda", 1), ("admm", 3)])
def test_nothing_is_told_where_nothing_is_solved_or_tokens_are_enough(told, prune, windows):
    assert told(prune, windows) == []


@pytest.mark.parametrize(
    "score",
    [
        {"use": "sensitivity", "prune": "sparsegpt"},
        {"use": "local_metric", "metric": "optimal_brain_surgeon"},
        {"use": "weight_metric", "metric": "optimal_brain_surgeon"},
    ],
    ids=str,
)
def test_a_scorer_that_solves_by_them_tells_it_once_a_block(told, score):
    assert told("magnitude", score=score) == [
        f"{score['use']}: model.layers.{n}.self_attn.q_proj.weight: 16 tokens for 32 inputs, and those of 6 other "
        "layers are few: what is solved by them may fit the calibration data alone. Calibrate on more samples, or on "
        "longer ones"
        for n in range(3)
    ]


def test_too_few_tokens_leave_what_the_inner_pruner_kept(plain, pico, tmp_path):
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 1}
    done = [
        ecoflap.run(plain(prune=prune, calibration=text, score=None, export=None), folder=tmp_path / name)
        for name, prune in (("refit", "refit"), ("wanda", "wanda"))
    ]
    sentence = "fewer tokens than inputs are too few to refit by, so the inner result is kept"
    assert any(one.endswith(sentence) for one in done[0].report.warnings)
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in done)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
