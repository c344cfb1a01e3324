"""Whole runs on a pico model: the plan holds on the files, read back."""

import json
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sealed_by_hand import read_sealed, write_sealed

import ecoflap
from ecoflap.core.errors import ModelError, RecipeError, RunError
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.report import read_report
from ecoflap.core.run.pipeline import default_name

SCORES = {
    "zeroth_order": {"use": "zeroth_order", "samples": 2},
    "joint": {"use": "zeroth_order", "samples": 2, "joint": True},
    "first_order": {"use": "first_order", "samples": 4},
    "magnitude": "magnitude",
    "outlier_share": {"use": "outlier_share", "samples": 4},
}
CASES = [
    (score, allocator, pruner, granularity, sparsity)
    for (score, allocator), pruner, granularity, sparsity in zip(
        [*product(SCORES, ("ecoflap", "uniform")), *[("outlier_share", "owl")] * 5],
        ("magnitude", "wanda", "sparsegpt") * 5,
        ("block", "layer", "tower", "model", "block") * 3,
        (0.5, 0.7, 0.3, 0.61, 0.05) * 3,
        strict=True,
    )
]


def check(run, source, sparsity):
    """The files of a finished run, against its plan and the model it came from."""
    plan, masks = run.plan, read_masks(run.folder / "masks.safetensors")
    before, after = load_file(source / "model.safetensors"), load_file(run.folder / "model" / "model.safetensors")
    if sparsity is not None:
        assert plan.keep == int(plan.size * (1 - Fraction(str(sparsity))))
    assert set(masks) == set(plan.layers)
    assert sum(int(mask.sum()) for mask in masks.values()) == plan.keep
    assert list(before) == list(after)
    for name, weight in after.items():
        if name in plan.layers:
            mask = masks[name]
            assert int(mask.sum()) == plan.layers[name].keep, name
            assert not weight[~mask].any(), name
            assert weight.count_nonzero() <= plan.layers[name].keep, name
        else:
            assert torch.equal(weight, before[name]), name
    return before, after


@pytest.mark.parametrize(("score", "allocator", "pruner", "granularity", "sparsity"), CASES)
def test_the_plan_holds_on_the_files(plain, pico, tmp_path, score, allocator, pruner, granularity, sparsity):
    scorer = SCORES[score] if isinstance(SCORES[score], dict) else {"use": SCORES[score]}
    if granularity == "layer" and score in ("joint", "outlier_share") and allocator != "uniform":
        granularity = "block"  # those score whole blocks
    recipe = plain(score={**scorer, "granularity": granularity}, allocate=allocator, prune=pruner, sparsity=sparsity)
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    before, after = check(run, pico / "model", sparsity)
    if pruner != "sparsegpt":  # which moves the weights that stay
        masks = ecoflap.load_masks(run.folder)
        assert all(torch.equal(after[name], before[name] * masks[name]) for name in masks)
    state = run.model.state_dict()
    packed = ecoflap.load_packed(run.folder / "exports" / "safetensors" / "model.packed.safetensors")
    assert packed.keys() == state.keys()
    assert all(torch.equal(packed[name], state[name]) for name in state)
    assert (run.folder / "scores.jsonl").exists() == (allocator != "uniform")
    assert not (run.folder / "blocks").exists()
    assert read_report(run.folder / "report.json") == run.report


@pytest.mark.parametrize(
    ("score", "allocator"),
    [
        ({"use": "sensitivity", "samples": 2}, "marginal"),
        (
            {"use": "sensitivity", "samples": 2, "joint": False, "granularity": "layer", "prune": "magnitude"},
            "marginal",
        ),
        ("hill", "alpha"),
        (None, {"use": "atp", "beta": 0.05}),
    ],
)
def test_the_plan_holds_with_other_budgets(plain, pico, tmp_path, score, allocator):
    recipe = plain(score=score, allocate=allocator, prune="sparsegpt", sparsity=0.61)
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    check(run, pico / "model", 0.61)
    assert read_report(run.folder / "report.json") == run.report
    counts = {name: [layer.keep / layer.size for layer in run.plan.layers.values() if layer.block == name]
              for name in run.report.blocks}  # fmt: skip
    assert len({round(sum(shares) / len(shares), 4) for shares in counts.values()}) > 1
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    curves = [group.curve for group in run.report.groups.values()]
    assert all((str(curve) in page) == (curve is not None) for curve in curves)
    assert all(curve is not None for curve in curves) == (allocator == "marginal")


def test_a_model_is_scored_in_the_type_that_the_scorer_asks_for(plain, tmp_path):
    seen = []

    @dataclass(frozen=True)
    class Sees:
        dtype: ClassVar[str] = "model"

        def __call__(self, replay, layers):
            seen.append(replay.dtype)
            yield from ((layer.name, 1.0 + at) for at, layer in enumerate(layers))

    @dataclass(frozen=True)
    class SeesWide(Sees):
        dtype: ClassVar[str] = "float32"

    for number, (scorer, compute) in enumerate([(Sees, "model"), (SeesWide, "model"), (Sees, "float32")]):
        model = {"source": plain()["model"], "compute": compute}
        ecoflap.run(plain(model=model, score=scorer, allocate="ecoflap"), folder=tmp_path / str(number))
    assert seen == [None, torch.float32, torch.float32]


@pytest.mark.parametrize("pruner", ["magnitude", "wanda", "sparsegpt"])
def test_a_pattern_holds_in_every_run_of_the_saved_file(plain, pico, tmp_path, pruner):
    run = ecoflap.run(plain(sparsity="2:4", score=None, prune=pruner), folder=tmp_path / "run")
    check(run, pico / "model", 0.5)
    for name, mask in read_masks(run.folder / "masks.safetensors").items():
        assert bool((mask.reshape(-1, 4).sum(1) == 2).all()), name


def test_transformers_alone_loads_the_model_and_says_the_same(plain, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = ecoflap.run(plain(export=None), folder=tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(run.folder / "model", torch_dtype="auto").eval()
    assert loaded.dtype == torch.bfloat16
    tokens = AutoTokenizer.from_pretrained(run.folder / "model")("word1 word2 the word3", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, run.model(tokens).logits)


def test_a_plan_is_taken_over_exactly(plain, plain_run, tmp_path):
    first = plain_run
    recipe = plain(allocate={"use": "from_file", "path": str(first.folder)}, score=None, prune="magnitude")
    second = ecoflap.run(recipe, folder=tmp_path / "second")
    kept = [{name: layer.keep for name, layer in run.plan.layers.items()} for run in (first, second)]
    assert kept[0] == kept[1]
    assert len(set(kept[0].values())) > 2


def test_a_plan_says_how_much_is_pruned_and_an_edited_one_leaves_layers_dense(plain, plain_run, pico, tmp_path):
    keys = {"score": None, "sparsity": None, "prune": "magnitude", "evaluate": None, "export": None}
    plan = read_sealed(plain_run.folder / "plan.json")
    for name, layer in plan["layers"].items():
        layer["keep"] = layer["size"] if ".layers.0." in name else layer["size"] // 3
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    for path in (plain_run.folder, tmp_path / "edited.json"):
        recipe = plain(**keys, allocate={"use": "from_file", "path": str(path)})
        run = ecoflap.run(recipe, folder=tmp_path / f"of-{path.name}")
        wanted = plain_run.plan.dump() if path == plain_run.folder else plan
        assert {name: layer.keep for name, layer in run.plan.layers.items()} == {
            name: layer["keep"] for name, layer in wanted["layers"].items()
        }
        check(run, pico / "model", None)


def test_a_plan_with_patterns_is_refused_where_they_would_be_lost(plain, plain_run, tmp_path):
    plan = read_sealed(plain_run.folder / "plan.json")
    name = list(plan["layers"])[1]
    plan["layers"][name]["pattern"] = "1:4"
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(plan))
    keys = {"score": None, "prune": "magnitude", "evaluate": None, "export": None}
    with pytest.raises(RecipeError) as refused:
        ecoflap.run(plain(**keys, allocate={"use": "from_file", "path": str(file)}), folder=tmp_path / "run")
    (told,) = refused.value.problems
    assert told.startswith(f"allocate: {file}: it has patterns, 1:4 in 1 layers ({name}), and this takes over counts")
    whole = plain(**keys, sparsity="2:4")
    of = ecoflap.run(whole, folder=tmp_path / "whole").folder
    with pytest.raises(RecipeError, match=r"it has patterns, 2:4 in \d+ layers"):
        ecoflap.run(plain(**keys, allocate={"use": "from_file", "path": str(of)}), folder=tmp_path / "run")
    # its only tower has the pattern here too, so that none is lost
    own = {"language": {"sparsity": "2:4"}}
    kept = ecoflap.run(
        plain(**keys, towers=own, allocate={"use": "from_file", "path": str(of)}), folder=tmp_path / "kept"
    )
    assert {layer.pattern for layer in kept.plan.layers.values()} == {"2:4"}


def test_scores_are_taken_from_another_run(plain, plain_run, tmp_path):
    first = plain_run
    second = ecoflap.run(plain(score={"use": "from_run", "run": str(first.folder)}), folder=tmp_path / "second")
    assert (second.folder / "plan.json").read_bytes() == (first.folder / "plan.json").read_bytes()
    assert (second.folder / "scores.jsonl").read_bytes() == (first.folder / "scores.jsonl").read_bytes()


def test_a_model_in_memory_is_pruned_in_place_and_again_by_a_finished_run(plain, pico_llama, pico_tokenizer, tmp_path):
    model, again = pico_llama().train(), pico_llama()
    recipe = plain(model=None)
    run = ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / "run")
    assert run.model is model
    assert not model.training
    masks = ecoflap.load_masks(run.folder)
    assert sum(int(masks[name].sum()) for name in run.plan.layers) == run.plan.keep
    second = ecoflap.run(recipe, model=again, processor=pico_tokenizer, folder=tmp_path / "run")
    assert second.model is again
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(RunError, match=r"another model than is given now\. A model in memory is pruned in place"):
        ecoflap.run(recipe, model=pico_llama(seed=5), processor=pico_tokenizer, folder=tmp_path / "run")


def test_the_dense_model_is_evaluated_before_it_is_pruned(plain, tmp_path):
    run = ecoflap.run(plain(sparsity=0.8), folder=tmp_path / "run")
    dense, pruned = (found["perplexity"] for found in (run.report.measures.dense, run.report.measures.pruned))
    assert dense.value != pruned.value
    unpruned = ecoflap.run(plain(sparsity=0, score=None), folder=tmp_path / "none")
    measures = unpruned.report.measures
    assert measures.dense["perplexity"] == measures.pruned["perplexity"] == dense


def test_one_window_has_no_standard_error_and_the_report_stays_json(plain, tmp_path):
    recipe = plain(score={"use": "zeroth_order", "samples": 2}, calibration={**plain()["calibration"], "samples": 2})
    recipe["evaluate"]["data"]["samples"] = 1
    run = ecoflap.run(recipe, folder=tmp_path / "run")

    def refuse(word):
        raise AssertionError(word)

    for name in ("report.json", "plan.json"):
        json.loads((run.folder / name).read_text(), parse_constant=refuse)
    assert run.report.measures.dense["perplexity"].standard_error is None
    assert all(group.standard_error is None for group in run.report.groups.values())


def test_more_samples_than_there_are_is_said(plain, tmp_path):
    run = ecoflap.run(plain(score={"use": "zeroth_order", "samples": 9}), folder=tmp_path / "run")
    said = "score: samples is 9 and the calibration data has 4; all of those were used"
    assert run.report.warnings == (said,)
    assert said in (run.folder / "log.jsonl").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_stop_the_run_with_their_name(plain, pico_llama, pico_tokenizer, tmp_path, value):
    model = pico_llama()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    with pytest.raises(ModelError, match=r"NaN or infinite weights in model\.layers\.1\.mlp\.up_proj\.weight\. Get"):
        ecoflap.run(plain(model=None), model=model, processor=pico_tokenizer, folder=tmp_path / "run")


def test_activations_that_overflow_stop_the_run_with_the_layers_name(plain, pico_llama, pico_tokenizer, tmp_path):
    model = pico_llama(dtype=torch.float16)
    for matrix in (model.model.layers[1].mlp.up_proj, model.model.layers[1].mlp.gate_proj):
        matrix.weight.data.fill_(3e4)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.down_proj\.weight: its inputs hold NaN or infinite"):
        ecoflap.run(
            plain(model={"compute": "model"}, score=None, evaluate=None),
            model=model, processor=pico_tokenizer, folder=tmp_path / "run",
        )  # fmt: skip


def test_a_singular_gram_is_warned_of_once(plain, pico, tmp_path):
    text = tmp_path / "one-word.txt"
    text.write_text("word1 " * 400)
    calibration = {"use": "text", "path": str(text), "samples": 1, "sequence_length": 8}
    recipe = plain(calibration=calibration, prune={"use": "sparsegpt", "damping": 0}, score=None, evaluate=None)
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    warned = [line for line in run.report.warnings if "SparseGPT needed damping" in line]
    grams = 4  # of a block: what q, k and v read, what o reads, what gate and up read, what down reads
    assert len(warned) == len(set(warned)) <= 3 * grams
    assert any(line.startswith("model.layers.0.self_attn.q_proj.weight: ") for line in warned)
    assert not any("k_proj" in line or "v_proj" in line or "up_proj" in line for line in warned)
    log = (run.folder / "log.jsonl").read_text()
    assert all(line in log for line in warned)


def test_masks_of_another_plan_are_refused(plain, copied_run):
    run = copied_run
    plan = read_sealed(run.folder / "plan.json")
    name = next(iter(plan["layers"]))
    plan["layers"][name]["keep"] -= 1
    write_sealed(run.folder / "plan.json", plan)
    with pytest.raises(ecoflap.EcoflapError, match=rf"masks\.safetensors: keeps \d+ weights of {name} where the plan"):
        ecoflap.run(plain(), folder=run.folder)


def test_a_saver_that_writes_something_else_is_found_out(plain, pico_llama, pico_tokenizer, tmp_path, monkeypatch):
    from ecoflap.adapters.llama import LlamaAdapter

    save = LlamaAdapter.save

    def wrong(self, model, folder):
        weight = model.model.layers[2].mlp.down_proj.weight
        kept = weight.data.clone()
        weight.data[weight.data == 0] = 1.0
        save(self, model, folder)
        weight.data = kept

    monkeypatch.setattr(LlamaAdapter, "save", wrong)
    with pytest.raises(ecoflap.EcoflapError, match=r"layers\.2\.mlp\.down_proj\.weight reads back other than it was"):
        ecoflap.run(plain(), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    assert ecoflap.run(plain(), folder=tmp_path / "run").report.sparsity == 0.5


def test_the_default_folder_is_named_by_what_was_set_but_not_by_what_may_change():
    assert default_name("quickstart", []) == "quickstart"
    assert default_name("language/fast", ["sparsity=0.6"]) == "language-fast-sparsity-0.6"
    assert (
        default_name("a/b.yaml", ["sparsity=0.6", "export=hugging_face", "evaluate=[]", "reuse=x"]) == "b-sparsity-0.6"
    )
    assert default_name("b", ["prune={use: wanda, compare: layer}"]) == "b-prune-use-wanda-compare-layer"
    assert default_name({}, []) == "run"
    changing = ["model.config=null", "model.config.a=1", "model.offload=cpu", "calibration.keep=disk"]
    assert default_name("b", changing) == "b"
    assert default_name("b", ["calibration.samples=4"]) == "b-calibration.samples-4"


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(plain, pico, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match=r"model\.device: cuda:3 is not there: torch sees 0 CUDA devices"):
        ecoflap.run(plain(model={"source": str(pico / "model"), "device": "cuda:3"}), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_way_of_the_kernels_that_cannot_be_taken_is_refused_before_anything_is_read(plain, tmp_path, take_path):
    """It is asked for when a pruner first sums a Gram matrix, hours later."""
    take_path("nowhere")
    with pytest.raises(RecipeError, match=r"ECOFLAP_KERNEL=nowhere"):
        ecoflap.run(plain(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_the_callers_inference_mode(plain, tmp_path):
    recipe = plain(score={"use": "first_order", "samples": 2})
    expected = ecoflap.run(recipe, folder=tmp_path / "usual").report.measures
    with torch.inference_mode():
        assert ecoflap.run(recipe, folder=tmp_path / "within").report.measures == expected
        assert torch.is_inference_mode_enabled()


def test_the_pruned_model_of_an_export_is_the_saved_one(plain, tmp_path):
    run = ecoflap.run(plain(export=["hugging_face", "safetensors"]), folder=tmp_path / "run")
    files = [run.folder / "model", run.folder / "exports" / "hugging_face"]
    with safe_open(files[0] / "model.safetensors", "pt") as one, safe_open(files[1] / "model.safetensors", "pt") as two:
        assert all(torch.equal(one.get_tensor(name), two.get_tensor(name)) for name in one.keys())  # noqa: SIM118
    assert list(run.report.bytes) == ["model", "hugging_face", "safetensors"]


def test_what_is_set_of_a_recipe_that_is_loaded_is_not_passed_over(plain, tmp_path):
    loaded = parse_recipe(plain(), registry=ecoflap.load_registry())
    with pytest.raises(RecipeError, match="set_ changes a recipe as it is read, and this one is loaded"):
        ecoflap.run(loaded, set_=["sparsity=0.9"], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
