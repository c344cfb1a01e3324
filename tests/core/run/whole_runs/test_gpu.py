"""Whole runs on a GPU, each beside the same on the CPU. Where there is none they run on a pretended one, by
test_pretended_gpu.py."""

import pytest
import torch

import ecoflap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

UNIFORM = {"score": None, "allocate": "uniform"}
RECONSTRUCT, DISTILL = {"use": "reconstruct", "steps": 4}, {"use": "distill", "steps": 4}
REFINED = {"prune": "wanda", "refine": [RECONSTRUCT, DISTILL]}
METHODS = {
    "zeroth order": {},
    "first order": {"score": {"use": "first_order", "samples": 4}},
    "sensitivity": {"score": {"use": "sensitivity", "samples": 2}, "allocate": "marginal"},
    "outlier share": {"score": "outlier_share", "allocate": "owl"},
    "hill": {"score": "hill", "allocate": "alpha"},
    "local metric": {"score": "local_metric", "allocate": "ecoflap"},
    "magnitude": {**UNIFORM, "prune": "magnitude"},
    "sparsegpt": {**UNIFORM, "prune": "sparsegpt"},
    "admm": {**UNIFORM, "prune": "admm"},
    "refit": {**UNIFORM, "prune": {"use": "refit", "inner": "wanda"}},
    "swap": {**UNIFORM, "prune": {"use": "swap", "inner": "wanda"}},
    "dsnot": {**UNIFORM, "prune": {"use": "dsnot", "inner": "wanda"}},
    "ria": {**UNIFORM, "prune": {"use": "by_metric", "metric": "ria"}},
    "wanda_plus_plus": {**UNIFORM, "prune": {"use": "by_metric", "metric": "wanda_plus_plus"}},
    "2:4": {**UNIFORM, "prune": "sparsegpt", "sparsity": None, "pattern": "2:4"},
    "in turn": {**UNIFORM, "prune": "sparsegpt", "sequential": True},
    # By gradients: a difference of two losses is mostly what either rounds, and a round prunes by the one before it.
    "three rounds": {"rounds": 3, "score": {"use": "first_order", "samples": 4}},
    "refined": {**UNIFORM, **REFINED},
}


@pytest.fixture
def alike(plain, tmp_path):
    """``alike(model, **keys)``: the share of weights that both devices prune or keep, and the run on the GPU."""

    def alike(model=None, **keys):
        place = {"source": plain()["model"], "dtype": "float32", **(model or {})}
        runs = [
            ecoflap.run(plain(model={**place, "device": device}, **keys), folder=tmp_path / device)
            for device in ("cpu", "cuda")
        ]
        theirs, ours = (ecoflap.load_masks(run.folder) for run in runs)
        same = sum(int((mask == theirs[name]).sum()) for name, mask in ours.items())
        assert runs[1].report.machine["device"] == "cuda"
        return same / sum(mask.numel() for mask in ours.values()), runs[1]

    return alike


@pytest.mark.parametrize("method", METHODS)
def test_a_method_prunes_what_it_prunes_on_the_cpu(alike, method):
    share, run = alike(**METHODS[method])
    assert share > 0.995
    assert {parameter.device.type for parameter in run.model.parameters()} == {"cuda"}


@pytest.mark.parametrize("method", ["first order", "in turn", "refined"])
@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_a_model_visits_the_gpu_block_by_block(alike, plain, method, keep, offload):
    calibration = {**plain()["calibration"], "keep": keep}
    share, run = alike({"offload": offload}, calibration=calibration, **METHODS[method])
    assert share > 0.995
    assert {parameter.device.type for parameter in run.model.parameters()} == {"cpu"}


def test_a_model_in_bfloat16_is_refined_and_exported(alike):
    """What is summed is rounded otherwise there: the CPU's kernels add products of bfloat16, and a GPU float32's."""
    share, run = alike({"dtype": "bfloat16"}, **REFINED, export=["safetensors", "hugging_face"])
    assert share > 0.9
    assert ecoflap.load_model(run.folder / "exports" / "safetensors")


def test_evaluators_that_see_the_dense_model_see_it_there(alike, plain):
    data = plain()["evaluate"]["data"]
    _, run = alike(evaluate=[{"use": name, "data": data} for name in ("perplexity", "kl", "agreement")])
    assert run.report.measures.pruned.keys() >= {"perplexity", "kl", "agreement"}


def test_a_tensor_of_the_cpu_is_refused_there():
    """As CUDA does. Otherwise what runs on a pretended GPU would say nothing."""
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(3, device="cuda") + torch.ones(3)
