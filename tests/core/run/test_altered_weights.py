"""Weights that were altered before a run, by a scorer, or by what only looks at them: it is said, or refused."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save
from transformers_version import LEAVES_WEIGHTS, OFFLOADS

import ecoflap
from ecoflap import ColumnNorm, Pruned, select
from ecoflap.core.errors import ModelError, RunError
from ecoflap.core.forward.placement import restored

SHORT = {"score": None, "allocate": "uniform", "prune": "magnitude", "evaluate": None, "export": None}
ZERO = "were zero before anything was pruned"


class Shrinks:
    """Moves each layer by hand, and does not come back to the same bits."""

    def __call__(self, replay, layers):
        for layer in layers:
            layer.weight.data.mul_(0.9)
            loss = replay.loss(0)
            layer.weight.data.div_(0.9)
            yield layer.name, float(loss.mean())


class Exchanges(Shrinks):
    """Gives one layer another tensor."""

    def __call__(self, replay, layers):
        layers[1].parameter.data = layers[1].parameter.data.roll(1)
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))


class PutsBack(Shrinks):
    """Moves each layer in every way that ends with the same bits."""

    def __call__(self, replay, layers):
        for layer in layers:
            before = layer.weight.detach().clone()
            layer.weight.data.mul_(0.9)
            layer.weight.data.copy_(before)
            with restored([layer]):
                layer.weight.data.zero_()
            with replay.perturbed(layer, torch.ones(layer.shape)):
                yield layer.name, float(replay.loss(0).mean())


@pytest.mark.parametrize(("scorer", "first"), [(Shrinks, r"layers\.0\.self_attn\.q_proj"), (Exchanges, "k_proj")])
def test_it_is_named_with_the_first_layer_and_a_run_that_goes_on_asks_it_again(plain, tmp_path, scorer, first):
    recipe = plain(score=scorer, evaluate=None, export=None)
    for _ in range(2):
        said = rf"the scorer \S+{scorer.__name__} has left the .*: model\.\S*{first}\.weight was .* replay\.perturbed"
        with pytest.raises(ModelError, match=said):
            ecoflap.run(recipe, folder=tmp_path / "run")
        assert not (tmp_path / "run" / "scores.jsonl").exists()


class LeavesAHook(Shrinks):
    """Looks at what a block gives, and forgets to take its hook off, which clamps."""

    def __call__(self, replay, layers):
        replay.model.model.layers[1].register_forward_hook(lambda module, given, output: output.clamp(-1, 1))
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))


class ScalesANorm(Shrinks):
    """Changes a weight that no scorer is given."""

    def __call__(self, replay, layers):
        replay.model.model.norm.weight.data.mul_(1.5)
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        (LeavesAHook, r"a forward hook was left on model\.layers\.1\."),
        (ScalesANorm, r"model\.norm\.weight was written into\."),
    ],
)
def test_what_is_no_layer_is_to_be_left_alone_too(plain, tmp_path, scorer, said):
    """A run that was cut off behind the scores would go on with another model than one that was not."""
    float32 = {
        "source": plain()["model"],
        "dtype": "float32",
    }  # otherwise norms are copies in it, which go by themselves
    with pytest.raises(ModelError, match=rf"{scorer.__name__} has left the model otherwise .*: {said}"):
        ecoflap.run(plain(score=scorer, evaluate=None, export=None, model=float32), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "scores.jsonl").exists()


class Trains:
    """Leaves the model training behind its last score, and torch without gradients, as others' code does."""

    def __call__(self, replay, layers):
        for number, layer in enumerate(layers):
            yield layer.name, 1.0 + number
        replay.model.train()
        torch.set_grad_enabled(False)


class Numbers:
    """The same scores."""

    def __call__(self, replay, layers):
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))


def test_a_model_that_a_scorer_leaves_training_does_not_train_while_it_is_pruned(plain, pico, tmp_path):
    """It would drop what its attention gives at random, so that masks were others."""
    source = shutil.copytree(pico / "model", tmp_path / "model")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    keys = {"model": {"source": str(source)}, "refine": "reconstruct", "evaluate": None, "export": None}
    saved = []
    for scorer in (Numbers, Trains):
        done = ecoflap.run(plain(score=scorer, **keys), folder=tmp_path / scorer.__name__)
        saved.append(load_file(done.folder / "model" / "model.safetensors"))
        assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, saved[0][name]) for name, tensor in saved[1].items())


class TakesAway(Shrinks):
    """Leaves a layer without its numbers."""

    def __call__(self, replay, layers):
        layers[0].module.to_empty(device="meta")
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))


def test_a_layer_that_has_no_numbers_any_more_is_named(plain, tmp_path):
    recipe = plain(score=TakesAway, evaluate=None, export=None)
    with pytest.raises(ModelError, match=r"TakesAway has left the model .*: model\.layers\.0\.self_attn\.q_proj"):
        ecoflap.run(recipe, folder=tmp_path / "run")


class WritesTheFile:
    """Moves nothing: it stands for somebody who writes into the file of the model behind the last score."""

    file: ClassVar[Path]

    def __call__(self, replay, layers):
        yield from ((layer.name, 1.0 + number) for number, layer in enumerate(layers))
        other = save({name: 3 * tensor for name, tensor in load_file(self.file).items()}, {"format": "pt"})
        with self.file.open("r+b") as file:
            file.write(other)


@LEAVES_WEIGHTS
def test_a_file_that_somebody_writes_into_is_not_blamed_on_the_scorer(plain, pico, tmp_path, monkeypatch):
    source = shutil.copytree(pico / "model", tmp_path / "model")
    monkeypatch.setattr(WritesTheFile, "file", source / "model.safetensors", raising=False)
    model = {"source": str(source), "offload": "disk"}
    recipe = plain(score=WritesTheFile, evaluate=None, export=None, model=model)
    with pytest.raises(RunError, match=r"model\.safetensors changed while the model was read from there"):
        ecoflap.run(recipe, folder=tmp_path / "run")
    assert (tmp_path / "run" / "scores.jsonl").is_file()


class BreaksTheFile(WritesTheFile):
    """Stands for somebody who writes into it what is no weight, while the scorer looks at the loss."""

    def __call__(self, replay, layers):
        size = self.file.stat().st_size
        with self.file.open("r+b") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            file.seek(begin)
            file.write(b"\xff" * (size - begin))
        yield from ((layer.name, float(replay.loss(0).mean())) for layer in layers)


@LEAVES_WEIGHTS
def test_nor_is_what_comes_of_its_new_bytes(plain, pico, tmp_path, monkeypatch):
    """A loss that is no number would be blamed on the step of the noise, or on the model."""
    source = shutil.copytree(pico / "model", tmp_path / "model")
    monkeypatch.setattr(WritesTheFile, "file", source / "model.safetensors", raising=False)
    recipe = plain(score=BreaksTheFile, evaluate=None, export=None, model={"source": str(source), "offload": "disk"})
    with pytest.raises(RunError, match=r"model\.safetensors changed while the model was read from there") as caught:
        ecoflap.run(recipe, folder=tmp_path / "run")
    assert "the loss of calibration batch 0 is nan" in str(caught.value.__cause__)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_what_comes_back_to_the_same_bits_is_left_to_do_it(plain, pico, tmp_path, offload):
    model = {"source": str(pico / "model"), "offload": offload}
    recipe = plain(score=PutsBack, prune="magnitude", evaluate=None, export=None, model=model)
    done = ecoflap.run(recipe, folder=tmp_path / "run")
    before, after = load_file(pico / "model" / "model.safetensors"), done.model.state_dict()
    masks = ecoflap.load_masks(done.folder)
    assert all(torch.equal(after[name][mask], before[name][mask]) for name, mask in masks.items())


class InPlace:
    """A metric that writes into the weights, as abs_ does."""

    needs = (ColumnNorm,)

    def __call__(self, weight, seen):
        return weight.abs_() * seen[ColumnNorm].squared


class InPlaceByData(InPlace):
    """A metric that writes in a way of which PyTorch does not count."""

    def __call__(self, weight, seen):
        return weight.data.abs_() * seen[ColumnNorm].squared


class Corrects:
    """A pruner that writes into the weights, which a run that goes on would not do again."""

    def __call__(self, weight, seen, budget, layer):
        mask = select(weight.abs(), budget)
        return Pruned(mask, weight.mul_(2).mul_(mask))


@pytest.mark.parametrize(
    ("prune", "who"),
    [
        ({"use": "by_metric", "metric": InPlace}, "the metric InPlace"),
        ({"use": "by_metric", "metric": InPlaceByData}, "the metric InPlaceByData"),
        (Corrects, r"the pruner \S*:Corrects"),
        ({"use": "refit", "inner": Corrects}, "the inner pruner Corrects"),
    ],
)
def test_what_writes_into_the_weights_that_it_looks_at_is_named(plain, tmp_path, prune, who):
    recipe = plain(**{**SHORT, "prune": prune})
    said = rf"model\.layers\.0\.self_attn\.q_proj\.weight: {who} wrote into the weights, which"
    with pytest.raises(ModelError, match=said):
        ecoflap.run(recipe, folder=tmp_path / "run")


@pytest.mark.parametrize("metric", [InPlace, InPlaceByData])
@pytest.mark.parametrize("scorer", ["local_metric", "weight_metric"])
def test_a_metric_that_a_scorer_asks_is_held_to_the_same(plain, tmp_path, scorer, metric):
    keys = {**SHORT, "score": {"use": scorer, "metric": metric}, "allocate": None}
    with pytest.raises(ModelError, match=f"the metric {metric.__name__} wrote into the weights"):
        ecoflap.run(plain(**keys), folder=tmp_path / "run")


def test_a_model_in_memory_that_is_pruned_twice_is_told(plain, pico_llama, pico_tokenizer, tmp_path):
    model, recipe = pico_llama(), plain(**SHORT, model=None)
    first, second = (
        ecoflap.run({**recipe, "sparsity": sparsity}, model=model, processor=pico_tokenizer, folder=tmp_path / name)
        for sparsity, name in ((0.7, "first"), (0.5, "second"))
    )
    assert first.report.warnings == ()
    zeros = first.plan.size - first.plan.keep
    (warning,) = second.report.warnings
    assert warning.startswith(
        f"model: 70.0% of the weights that may be pruned, {zeros:,} of {first.plan.size:,}, {ZERO}"
    )
    assert second.report.kept_zeros == second.plan.keep - first.plan.keep


def test_so_is_a_folder_that_was_pruned_and_the_share_from_which_on_it_is(plain, tmp_path):
    for sparsity, told in ((0.09, False), (0.11, True)):
        first = ecoflap.run(plain(**SHORT, sparsity=sparsity), folder=tmp_path / f"{sparsity}")
        second = ecoflap.run(plain(**SHORT, model=str(first.folder / "model")), folder=tmp_path / f"{sparsity} again")
        assert any(ZERO in one for one in second.report.warnings) == told, sparsity


def test_rounds_and_masks_of_elsewhere_are_no_pruning_of_before(plain, tmp_path):
    keys = {**SHORT, "sparsity": None, "allocate": None}
    rounds = ecoflap.run(plain(**SHORT, rounds=2), folder=tmp_path / "rounds")
    masks = {"use": "from_masks", "path": str(rounds.folder)}
    taken = ecoflap.run(plain(**{**keys, "prune": masks}), folder=tmp_path / "taken")
    pruned = {"use": "from_masks", "path": str(rounds.folder / "model"), "zeros": True}
    own = ecoflap.run(plain(**{**keys, "prune": pruned}, model=str(rounds.folder / "model")), folder=tmp_path / "own")
    assert not [one for run in (rounds, taken, own) for one in run.report.warnings if ZERO in one]


def test_a_plan_that_says_how_much_is_pruned_does_not_hide_it(plain, tmp_path):
    first = ecoflap.run(plain(**SHORT), folder=tmp_path / "first")
    keys = {**SHORT, "sparsity": None, "allocate": {"use": "from_file", "path": str(first.folder)}}
    again = ecoflap.run(plain(**{**keys, "model": str(first.folder / "model")}), folder=tmp_path / "again")
    assert any(ZERO in one for one in again.report.warnings)


def test_16_bits_make_no_zeros_that_are_told(plain, pico_llama, pico_tokenizer, tmp_path):
    model = pico_llama(dtype=torch.float16)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[:2] = 0  # a dead output or two
    recipe = plain(**SHORT, model={"compute": "float32"})
    assert ecoflap.run(recipe, model=model, processor=pico_tokenizer, folder=tmp_path / "run").report.warnings == ()
