"""Parts from anywhere in a whole run: what they may leave out, and what becomes of one that raises or misspells."""

import json

import pytest
import torch
from transformers_version import LEAVES_WEIGHTS

import ecoflap
from ecoflap import Sample
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import ModelError

OTHERS = '''
from dataclasses import dataclass

from ecoflap import Pruned, select


@dataclass(frozen=True)
class Plain:
    """A pruner without ``needs``, by magnitude."""

    def __call__(self, weight, seen, budget, layer):
        assert not seen
        mask = select(weight.detach().abs().float(), budget, "layer")
        return Pruned(mask, weight * mask)


class Raises(Plain):
    """A pruner that raises in the second block."""

    def __call__(self, weight, seen, budget, layer):
        if layer.block_index == 1:
            raise LookupError("no such thing")
        return super().__call__(weight, seen, budget, layer)


class Agregates:
    """A scorer with a misspelt member."""

    data = False
    agregate = "mean"

    def __call__(self, replay, layers):
        yield from ((layer.name, 1.0) for layer in layers)


class Flat(Agregates):
    """A scorer to which all layers are equal."""

    agregate = property()

    def __dir__(self):
        return [name for name in super().__dir__() if name != "agregate"]


class Older:
    """A pruner for the signature of version 0.1.0."""

    needs = ()

    def __call__(self, weight, statistic, budget):
        return Pruned(weight != 0, weight)
'''


@pytest.fixture
def others(tmp_path, monkeypatch):
    """A module of parts that are installed nowhere."""
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def recipe(others, plain, tmp_path):
    """``recipe(**keys)``: a recipe's file without data, and with these keys."""

    def recipe(**keys):
        file = tmp_path / "recipe.yaml"
        keys = {"calibration": None, "score": None, "evaluate": None, "export": None, **keys}
        file.write_text(json.dumps(plain(**keys)))
        return file

    return recipe


def test_a_pruner_without_needs_is_planned_and_run(recipe, ecoflap_command, tmp_path):
    file = recipe(prune="others:Plain")
    code, out, _ = ecoflap_command("plan", file, "--allow-code")
    assert code == 0
    assert "others:Plain: 3 blocks, no data needed" in out
    code, _, error = ecoflap_command("run", file, "--folder", tmp_path / "run", "--allow-code")
    assert (code, "Traceback" in error) == (0, False)


def test_a_pruner_that_raises_ends_the_run_with_its_layer_and_its_line(recipe, ecoflap_command, tmp_path):
    code, _, error = ecoflap_command("run", recipe(prune="others:Raises"), "--folder", tmp_path / "run", "--allow-code")
    assert code == 2
    assert (
        "model.layers.1.self_attn.q_proj.weight: the pruner others:Raises raised LookupError: no such thing. "
        "It happened in others.py:" in error
    )
    assert (tmp_path / "run" / "blocks" / "000.safetensors").is_file()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"score": "others:Agregates"},
            "score: others:Agregates: it has a member 'agregate', which nothing reads.",
        ),
        ({"prune": "others:Older"}, "prune: others:Older: its __call__ takes (weight, statistic, budget), and is cal"),
        ({"prune": "magnitude", "export": {"use": "onnx", "views": ["decodr"]}}, "Did you mean 'decoder'?"),
    ],
)
def test_what_a_run_would_refuse_is_refused_by_the_plan(recipe, ecoflap_command, keys, said):
    if "export" in keys:
        pytest.importorskip("onnx_ir")
    code, _, error = ecoflap_command("plan", recipe(**keys), "--allow-code")
    assert code == 2
    assert said in error


def test_scores_that_are_all_equal_are_warned_of(recipe, ecoflap_command, tmp_path):
    file = recipe(score="others:Flat", prune="magnitude")
    code, _, _ = ecoflap_command("run", file, "--folder", tmp_path / "run", "--allow-code")
    assert code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("the score of every layer is 1, so nothing tells them apart" in one for one in report["warnings"])


class Meddles:
    """An evaluator that does to the model what it is told to."""

    def __init__(self, what="norm"):
        self.what = what

    def __call__(self, model, adapter, note):
        if self.what == "norm":
            model.model.norm.weight.data.mul_(1.5)
        elif self.what == "type":
            model.half()
        elif self.what == "hook":
            model.model.layers[0].mlp.register_forward_hook(lambda module, given, output: 2 * output)
        elif self.what == "gradients":
            model.requires_grad_(False)
        elif self.what == "int8":
            model.model.norm.weight.requires_grad_(False).data = torch.ones(32, dtype=torch.int8)
        elif self.what == "hidden":  # for which transformers leaves hooks of its own, the first time
            model(torch.ones(1, 4, dtype=torch.long), output_hidden_states=True, output_attentions=True)
        else:
            model.train()
        return {"nothing": Measure(0.0, n=1, standard_error=0.0, unit="samples")}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("norm", r"model\.norm\.weight was written into"),
        ("type", r"model\.\S+ was written into, .* and \d+ more"),
        ("hook", r"a forward hook was left on model\.layers\.0\.mlp"),
        ("int8", r"model\.norm\.weight was written into"),
    ],
)
def test_an_evaluator_that_changes_the_model_is_refused(plain, tmp_path, what, said):
    with pytest.raises(ModelError, match=rf"^the evaluator .*Meddles has left the model, .* than it was given: {said}"):
        ecoflap.run(plain(evaluate={"use": Meddles, "what": what}), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "evaluations.jsonl").is_file()  # or a run that goes on would take what it measured


@LEAVES_WEIGHTS
@pytest.mark.parametrize("what", ["norm", "type"])
def test_so_is_one_that_changes_a_model_that_stays_on_the_disk(plain, tmp_path, what):
    model = {"source": plain()["model"], "offload": "disk"}
    with pytest.raises(ModelError, match=r"Meddles has left the model, .* was written into"):
        ecoflap.run(plain(evaluate={"use": Meddles, "what": what}, model=model), folder=tmp_path / "run")


@pytest.mark.parametrize("what", ["mode", "gradients", "hidden"])
def test_modes_that_an_evaluator_leaves_are_put_back(plain, tmp_path, what):
    run = ecoflap.run(plain(evaluate={"use": Meddles, "what": what}), folder=tmp_path / "run")
    assert not any(module.training for module in run.model.modules())
    assert all(parameter.requires_grad for parameter in run.model.parameters())


class Halves:
    """A dataset that writes into the model."""

    def __call__(self, adapter, model, note):
        model.lm_head.weight.data.mul_(0.5)
        yield Sample(tokens=torch.arange(3, 11))


def test_a_dataset_that_writes_into_the_model_is_refused(plain, tmp_path):
    """All that comes next would be of another model, the dense evaluation too."""
    said = r"the dataset .*Halves has left the model, .* otherwise than it was given: lm_head\.weight was written"
    with pytest.raises(ModelError, match=said):
        ecoflap.run(plain(calibration={"use": Halves}), folder=tmp_path / "run")
