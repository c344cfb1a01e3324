"""Whole runs by numbers of single weights: what they keep, how they go on, and what becomes of their files."""

import json
import shutil
import signal
from itertools import pairwise

import pytest
import torch
from killing import in_a_fork, killer_in
from safetensors.torch import load_file
from table import row_of

import ecoflap
from ecoflap.core.cli.plan_report import prepared_tables
from ecoflap.core.errors import EcoflapError, FormatError, RecipeError
from ecoflap.core.planning.scores import read_scores
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.verifying.verify import verify

SCORES = {"use": "weight_metric", "metric": "magnitude"}
BY_INPUTS = {"use": "weight_metric", "metric": "wanda", "samples": 4}


@pytest.fixture
def recipe(plain):
    """Global magnitude pruning, in as few words as there are; keywords replace its keys."""

    def recipe(**keys):
        few = {"score": SCORES, "prune": "magnitude", "sparsity": 0.6, "evaluate": None, "export": None}
        return plain(**{**few, "calibration": None, **keys})

    return recipe


@pytest.fixture
def by_inputs(recipe, plain):
    """A recipe whose numbers come block by block, of data."""
    return recipe(score=BY_INPUTS, calibration=plain()["calibration"])


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "scores").iterdir())}


def test_the_largest_weights_of_the_whole_model_stay(recipe, pico, tmp_path):
    """Masks against one sort of all magnitudes in float64."""
    run = ecoflap.run(recipe(), folder=tmp_path / "run")
    masks, dense = ecoflap.load_masks(run.folder), load_file(pico / "model" / "model.safetensors")
    values = torch.cat([dense[name].double().abs().flatten() for name in masks]).sort(descending=True).values
    threshold = values[len(values) * 2 // 5 - 1]
    for name, mask in masks.items():  # of those that equal it, some go
        magnitudes = dense[name].double().abs()
        assert torch.equal(mask & (magnitudes != threshold), magnitudes > threshold), name
    assert sum(int(mask.sum()) for mask in masks.values()) == len(values) * 2 // 5
    assert run.report.method == "weight_metric → threshold → magnitude"
    assert (run.report.recipe.allocate.use, run.report.scored_unit) == ("threshold", "layer")
    means = {name: float(dense[name].double().abs().mean()) for name in masks}
    assert {name: group.score for name, group in run.report.groups.items()} == pytest.approx(means)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert all(f"{group.score:.6g}" in page for group in run.report.groups.values())


@pytest.mark.parametrize("granularity", ["block", "tower", "model"])
def test_larger_groups_keep_what_their_layers_have_of_the_largest(recipe, granularity, tmp_path):
    layers = ecoflap.run(recipe(), folder=tmp_path / "layers").plan
    run = ecoflap.run(recipe(score={**SCORES, "granularity": granularity}), folder=tmp_path / "run")
    for name, group in run.plan.groups.items():
        inside = [one for one, layer in run.plan.layers.items() if layer.group == name]
        assert abs(group.keep - sum(layers.layers[one].keep for one in inside)) <= len(inside)  # a tie at most
    assert run.plan.keep == layers.keep


def test_numbers_lie_in_files_that_the_lines_know(by_inputs, tmp_path):
    run = ecoflap.run(by_inputs, folder=tmp_path / "run")
    scores = read_scores(run.folder / "scores.jsonl")
    assert scores.kind == "weights"
    assert list(scores.values) == list(run.plan.layers)
    assert list(files_in(run.folder)) == [f"{at:03d}.safetensors" for at in range(len(run.plan.layers))]
    for name, layer in run.plan.layers.items():
        numbers = scores.values[name].numbers()
        assert (numbers.dtype, numbers.numel()) == (torch.float32, layer.size)
        assert scores.values[name].total == float(numbers.double().sum())
    found = verify(run.folder)
    assert found.strangers == []
    assert {path for path in found.files if path.parent.name == "scores"} == set((run.folder / "scores").iterdir())


POINTS = ["event:Progress score:3", "rename:scores/004.safetensors:before", "rename:scores/004.safetensors:after",
          "event:StageFinished score:1", "rename:plan.json:before", "rename:plan.json:after"]  # fmt: skip


@pytest.mark.parametrize(
    "point", [pytest.param(one, marks=pytest.mark.slow if number % 2 else ()) for number, one in enumerate(POINTS)]
)
def test_a_killed_run_goes_on_and_ends_the_same(by_inputs, lasting, point, tmp_path):
    whole = ecoflap.run(by_inputs, folder=tmp_path / "whole").folder
    folder = tmp_path / "run"
    assert in_a_fork(killer_in(tmp_path)(point), lambda: ecoflap.run(by_inputs, folder=folder)) == -signal.SIGKILL
    before = (folder / "scores.jsonl").read_bytes()
    assert verify(folder).unfinished == [folder]
    ecoflap.run(by_inputs, folder=folder)
    assert lasting(folder) == lasting(whole)
    assert files_in(folder) == files_in(whole)
    assert (folder / "scores.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("harm", ["turn a bit", "cut off", "delete"])
def test_a_file_that_is_not_what_was_written_is_refused_while_it_is_needed(by_inputs, lasting, harm, tmp_path):
    folder = tmp_path / "run"
    in_a_fork(killer_in(tmp_path)("event:Progress score:5"), lambda: ecoflap.run(by_inputs, folder=folder))
    file = folder / "scores" / "001.safetensors"
    raw = file.read_bytes()
    if harm == "delete":
        file.unlink()
    else:
        file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) if harm == "turn a bit" else raw[:-1])
    said = r"001\.safetensors.*Restore it, or delete it with the scores\.jsonl that knows it, and score anew"
    with pytest.raises(EcoflapError, match=said):
        ecoflap.run(by_inputs, folder=folder)
    (folder / "scores.jsonl").unlink()  # which is the way out
    ecoflap.run(by_inputs, folder=folder)
    assert lasting(folder) == lasting(ecoflap.run(by_inputs, folder=tmp_path / "whole").folder)


def test_files_of_a_finished_run_may_be_deleted_and_damaged_ones_are_told(recipe, tmp_path):
    folder = ecoflap.run(recipe(), folder=tmp_path / "run").folder
    (folder / "scores" / "002.safetensors").unlink()
    assert verify(folder).strangers == []
    file = folder / "scores" / "003.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"wxyz")
    with pytest.raises(
        FormatError, match=r"scores/003\.safetensors: the tensor .* is damaged.*\. Delete it alone: this"
    ):
        verify(folder)
    file.unlink()  # which is the way out
    assert verify(folder).strangers == []
    shutil.rmtree(folder / "scores")
    assert verify(folder).strangers == []
    ecoflap.run(recipe(), folder=folder)  # it needs them no more


def test_scores_are_taken_from_another_run(recipe, tmp_path):
    first = ecoflap.run(recipe(), folder=tmp_path / "first")
    taken = recipe(score={"use": "from_run", "run": str(first.folder)})
    second = ecoflap.run(taken, folder=tmp_path / "second")
    for name in ("plan.json", "scores.jsonl", "masks.safetensors"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    file = first.folder / "scores" / "000.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"wxyz")
    with pytest.raises(EcoflapError, match=r"000\.safetensors.*damaged.*\. Restore the file, or name another run"):
        ecoflap.run(taken, folder=tmp_path / "damaged")
    file.unlink()
    with pytest.raises(RecipeError, match=r"scores/000\.safetensors is missing, with it 1 files of that run's scores"):
        ecoflap.run(taken, folder=tmp_path / "third")


def test_reuse_takes_the_files_over_or_passes_a_run_without_them_over(recipe, tmp_path):
    first = ecoflap.run(recipe(), folder=tmp_path / "first").folder
    again = recipe(sparsity=0.7, reuse=[str(first)])
    other = ecoflap.run(again, folder=tmp_path / "other").folder
    assert RunFolder(other).taken_over() == ["scores"]
    assert files_in(other) == files_in(first)
    assert (other / "scores.jsonl").read_bytes() == (first / "scores.jsonl").read_bytes()
    file = first / "scores" / "001.safetensors"
    raw = file.read_bytes()
    file.unlink()
    file.write_bytes(raw[:-1])
    with pytest.raises(EcoflapError, match=r"001\.safetensors is truncated.*\. Restore the file, or take .*/first"):
        ecoflap.run(again, folder=tmp_path / "damaged")
    file.unlink()
    assert RunFolder(ecoflap.run(again, folder=tmp_path / "alone").folder).taken_over() == []


def test_rounds_are_cumulative_and_keep_the_files_of_the_last_alone(recipe, lasting, tmp_path):
    rounds = ecoflap.run(recipe(rounds=3), folder=tmp_path / "rounds")
    assert sorted(path.name for path in (rounds.folder / "rounds").iterdir()) == ["1", "2"]
    assert not list((rounds.folder / "rounds").glob("*/scores"))
    assert verify(rounds.folder).strangers == []
    masks = [ecoflap.load_masks(rounds.folder / name) for name in ("rounds/1", "rounds/2", "")]
    for before, after in pairwise(masks):
        assert not any(bool((after[name] & ~before[name]).any()) for name in after)
    # by magnitudes the last mask depends on the last sparsity alone
    once = ecoflap.run(recipe(), folder=tmp_path / "once")
    assert (rounds.folder / "masks.safetensors").read_bytes() == (once.folder / "masks.safetensors").read_bytes()


def test_towers_with_sparsities_of_their_own_have_thresholds_of_their_own(tmp_path):
    def counts(folder, **keys):
        model = row_of("clip").build()
        for name, weight in model.named_parameters():
            weight.data.mul_(3 if "vision" in name else 1)
        recipe = {"version": 1, "sparsity": 0.5, "score": SCORES, "prune": "magnitude", **keys}
        plan = ecoflap.run(recipe, model=model, folder=tmp_path / folder).plan
        return plan, {tower: round(share, 3) for tower, share in plan.sparsity_by_tower().items()}

    one, shares = counts("model")
    assert shares["vision"] < 0.4 < 0.6 < shares["text"]
    each, shares = counts("tower", allocate={"use": "threshold", "each": "tower"})
    assert set(shares.values()) == {0.5}
    assert one.keep == each.keep
    own, shares = counts("own", towers={"vision": {"sparsity": 0.25}})
    assert shares["vision"] == 0.25
    assert len({layer.keep / layer.size for layer in own.layers.values() if layer.tower == "vision"}) > 2
    assert shares["text"] == 0.5


def test_candidates_of_best_of_share_the_numbers(recipe, plain, tmp_path):
    keys = {"allocate": {"use": "best_of", "of": ["uniform", "threshold"]}, "calibration": plain()["calibration"]}
    run = ecoflap.run(recipe(**keys), folder=tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "trials.jsonl").read_text().splitlines()]
    assert [line["candidate"] for line in lines] == ["uniform", "threshold"]
    assert run.report.is_scored or len({layer.keep / layer.size for layer in run.plan.layers.values()}) < 9


def test_a_plan_counts_their_bytes_on_the_disk(recipe):
    registry = load_registry()

    def disk(**keys):
        prepared = prepare(parse_recipe(recipe(**keys), registry=registry), registry)
        rows = prepared_tables(prepared)[-1].rows
        return prepared.size, next(row for row in rows if row[0] == "disk")[2]

    size, told = disk()
    assert f"scores/ {4 * size / 1e3:.1f} kB" in told
    in_rounds = disk(rounds=3)[1]  # scores of one round are there at a time, and masks of all
    assert in_rounds.replace(f"rounds/ {2 * (size // 8) / 1e3:.1f} kB, ", "") == told
    assert "scores/" not in disk(score="magnitude")[1]
    assert "scores/" not in disk(allocate="uniform")[1]


def test_a_plan_counts_gradients_where_they_are_kept(recipe, plain):
    registry = load_registry()

    def needs(keep):
        keys = {"calibration": {**plain()["calibration"], "keep": keep}}
        score = {"use": "weight_metric", "metric": "magnitude_gradient"}
        prepared = prepare(parse_recipe(recipe(**keys, score=score), registry=registry), registry)
        largest = max(layer.size for _, layer in prepared.anatomy.layers())  # whose numbers are given, and made 0
        return prepared.size, 2 * largest, {row[0]: row[2] for row in prepared_tables(prepared)[-1].rows}

    size, given, in_memory = needs("memory")
    assert f"what the scorer holds {4 * (size + given) / 1e3:.1f} kB" in in_memory["peak memory"]
    assert "gradients" not in in_memory["disk meanwhile"]
    *_, on_disk = needs("disk")
    assert f"what the scorer holds {4 * given / 1e3:.1f} kB" in on_disk["peak memory"]
    assert f"gradients of the loss {4 * size / 1e3:.1f} kB" in on_disk["disk meanwhile"]
