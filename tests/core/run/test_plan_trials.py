"""Plans that are tried on a model: losses against pruning by hand, and what a killed trial leaves."""

from copy import deepcopy
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from sealed_by_hand import read_lines
from spec import spec

import ecoflap
from ecoflap import ColumnNorm, Pruned, Replay, select
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.events import Warned
from ecoflap.core.errors import NotFiniteError, RecipeError
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.run_log import RunLog
from ecoflap.core.registry.observers import Observers
from ecoflap.core.run.plan_trials import PlanTrials, held_out_of
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.refiners.reconstruct import Reconstruct

MAGNITUDE = Magnitude()


@pytest.fixture
def model(pico_llama):
    return pico_llama()


@pytest.fixture
def replay_of(model):
    return lambda batches, ranks=ALONE, spare=0: Replay(model, LlamaAdapter(), batches, ranks=ranks, spare=spare)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 60, (2, 16), generator=generator) for _ in range(5)]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


@pytest.fixture
def plans(replay_of):
    anatomy = replay_of([]).anatomy
    shares = {"none": Fraction(0), "half": Fraction(1, 2), "most": Fraction(9, 10)}
    return {
        name: make_plan(pools_of(anatomy, share, {}, []), Uniform(), "layer", None) for name, share in shares.items()
    }


@pytest.fixture
def told():
    return []


@pytest.fixture
def trials(replay_of, batches, told, tmp_path):
    class Log(RunLog):
        def emit(self, event):
            told.append(event)

    def trials(batches=batches, held_out=0.4, pruner=MAGNITUDE, **keys):
        pruners, folder = {"language": spec("pruner", pruner)}, RunFolder(tmp_path)
        return PlanTrials(replay_of, batches, held_out, pruners, folder, Log(folder, Observers([])), **keys)

    return trials


def loss_by_hand(model, plan, batches):
    """The mean loss with each matrix' smallest magnitudes set to zero."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, layer in plan.layers.items():
        weight = model.get_parameter(name).data
        weight.flatten()[weight.abs().flatten().argsort(stable=True)[: layer.size - layer.keep]] = 0
    with torch.no_grad():
        losses = [float(LlamaAdapter().loss(model, batch)) for batch in batches]
    model.load_state_dict(state)
    return sum(losses) / len(losses)


def test_the_plan_with_the_smallest_loss_on_what_was_held_out(model, plans, batches, trials, told, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = {name: loss_by_hand(model, plan, batches[3:]) for name, plan in plans.items()}
    best = min(expected, key=expected.get)
    assert trials().best(plans) is plans[best]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    lines = read_lines(tmp_path / "trials.jsonl")
    assert {line["candidate"]: line["loss"] for line in lines} == pytest.approx(expected, rel=1e-5)
    *progress, warned = told
    assert warned.message.startswith("allocate: losses on 2 held-out batches are none ")
    assert warned.message.endswith(f"; {best} was taken")
    assert [(event.stage, event.done, event.total) for event in progress] == [("allocate", at, 3) for at in range(4)]
    assert not (tmp_path / "blocks" / "trials").exists()


def test_what_was_tried_is_not_tried_again(plans, trials, told, tmp_path, monkeypatch):
    first = trials().best(dict(list(plans.items())[:2]))
    lines = (tmp_path / "trials.jsonl").read_bytes()
    monkeypatch.setattr("ecoflap.core.run.plan_trials.BlockwisePruning", None)
    assert trials().best({**dict(list(plans.items())[:2]), "again": plans["half"]}) is first
    assert (tmp_path / "trials.jsonl").read_bytes() == lines


def test_of_equal_plans_the_first_is_taken(plans, trials):
    copy = make_plan_like(plans["half"])
    assert trials().best({"first": plans["half"], "second": copy}) is plans["half"]


def test_a_plan_with_other_tokens_is_another(plans, trials, tmp_path, monkeypatch):
    asked = []

    class Watched(BlockwisePruning):
        def __call__(self):
            asked.append(dict(self.tokens_of))
            return super().__call__()

    monkeypatch.setattr("ecoflap.core.run.plan_trials.BlockwisePruning", Watched)
    tried = {str(choice): replace(plans["half"], tokens=choice) for choice in (None, "real", "all")}
    trials(tokens=lambda taken: {"language": taken or "text"}).best(tried)
    assert asked == [{"language": choice} for choice in ("text", "real", "all")]
    lines = read_lines(tmp_path / "trials.jsonl")
    assert len({line["plan"] for line in lines}) == 3
    assert len({line["loss"] for line in lines}) == 1  # magnitudes know nothing of tokens


def make_plan_like(plan):
    return type(plan)(dict(plan.layers), {})


def test_weights_come_back_where_a_trial_fails(model, plans, trials, monkeypatch):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fails(self, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(Replay, "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        trials().best({"most": plans["most"], "half": plans["half"]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Overflows:
    """Gives what it keeps of a matrix values that overflow in products, but where it keeps half of them."""

    def __call__(self, weight, seen, budget, layer):
        mask = select(weight.abs(), budget, "row")
        half = 2 * budget.keep_of(weight.numel()) == weight.numel()
        return Pruned(mask, mask * (weight if half else torch.full_like(weight, 3e37)))


class OverflowsByInputs(Overflows):
    """Is one that looks at inputs, which are not finite from the second block on."""

    needs = (ColumnNorm,)


@pytest.mark.parametrize(
    ("pruner", "why"),
    [
        (Overflows(), "the loss of calibration batch 0 is nan, from model.layers.0 on"),
        (OverflowsByInputs(), "its inputs hold NaN or infinite values on the calibration data"),
    ],
)
def test_a_candidate_without_a_finite_loss_is_not_taken(model, plans, trials, told, tmp_path, pruner, why):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keys = {"most": plans["most"], "half": plans["half"]}
    assert trials(pruner=pruner).best(keys) is plans["half"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    *_, losses, lost = [event.message for event in told if isinstance(event, Warned)]
    assert losses.startswith("allocate: losses on 2 held-out batches are half ")
    assert lost.startswith("allocate: the model pruned by most has no finite loss: ")
    assert why in lost
    assert lost.endswith(", so it was not taken")
    lines = (tmp_path / "trials.jsonl").read_bytes()
    assert trials(pruner=pruner).best(keys) is plans["half"]  # a run that goes on knows it
    assert (tmp_path / "trials.jsonl").read_bytes() == lines
    assert told[-1].message == lost


def test_a_candidate_that_leaves_nothing_to_refine_is_not_taken(plans, trials, told):
    refiners = {"language": [spec("refiner", Reconstruct(steps=2, batches=1))]}
    keys = {"most": plans["most"], "half": plans["half"]}
    assert trials(pruner=Overflows(), refiners_of=refiners).best(keys) is plans["half"]
    lost = [event.message for event in told if isinstance(event, Warned)][-1]
    assert lost.startswith("allocate: the model pruned by most has no finite loss: model.layers.0: as it was pruned it")
    assert lost.endswith(", so it was not taken")


def test_where_no_candidate_has_a_finite_loss_all_are_named(plans, trials, tmp_path):
    with pytest.raises(NotFiniteError) as raised:
        trials(pruner=Overflows()).best({"most": plans["most"], "none": plans["none"]})
    first, second = raised.value.problems
    assert first.startswith(
        "allocate: the model pruned by most has no finite loss: the loss of calibration batch 0 is "
    )
    assert second.startswith("allocate: the model pruned by none has no finite loss: ")
    assert first.endswith("write model.dtype: float32 where the model is of float16")
    assert not (tmp_path / "blocks" / "trials").exists()


@pytest.mark.parametrize("target", ["dense", "own"])
def test_refined_trials_look_at_what_pruning_and_refining_by_hand_gives(
    model, plans, batches, trials, tmp_path, target
):
    """Of a copy, pruned and refined on what is not held out, the plain loss on what is."""
    refiners = {"language": [spec("refiner", Reconstruct(steps=8, batches=1, target=target))]}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = {name: loss_by_hand(model, plan, batches[3:]) for name, plan in plans.items()}
    expected = {}
    for name, plan in plans.items():
        copy = deepcopy(model)
        replays = [Replay(copy, LlamaAdapter(), batches[:3]) for _ in range(2)]
        pruners, folder = {"language": spec("pruner", MAGNITUDE)}, tmp_path / name
        BlockwisePruning(
            replays[0], plan, pruners, folder, lambda event: None, refiners_of=refiners, dense=replays[1]
        )()
        with torch.no_grad():
            expected[name] = sum(float(LlamaAdapter().loss(copy, batch)) for batch in batches[3:]) / 2
    assert abs(expected["most"] - plain["most"]) > 1e-4  # refined it is another model
    best = min(expected, key=expected.get)
    assert trials(refiners_of=refiners).best(plans) is plans[best]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    lines = read_lines(tmp_path / "trials.jsonl")
    assert {line["candidate"]: line["loss"] for line in lines} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
def test_trials_take_statistics_as_the_run_does(plans, trials, monkeypatch, sequential):
    asked = []

    class Watched(BlockwisePruning):
        def __call__(self):
            asked.append(self.sequential)
            return super().__call__()

    monkeypatch.setattr("ecoflap.core.run.plan_trials.BlockwisePruning", Watched)
    trials(sequential=sequential).best({"half": plans["half"]})
    assert asked == [sequential]


@pytest.mark.parametrize(("batches", "share", "count"), [(100, 0.29, 29), (100, 0.57, 57), (50, 0.58, 29), (3, 0.1, 1)])
def test_what_is_held_out_is_the_share_as_it_is_written(batches, share, count):
    assert held_out_of(batches, share) == count


def test_one_batch_is_too_few(plans, trials, batches):
    with pytest.raises(RecipeError, match=r"there are only 1\. Set calibration\.samples higher"):
        trials(batches[:1]).best(plans)


@pytest.mark.parametrize("others", [["uniform"], ["ecoflap"]])
def test_the_plan_of_each_candidate_that_needs_no_score_is_made_before_anything_is_loaded(plain, tmp_path, others):
    few = plain(score=None, allocate="uniform", prune="magnitude", sparsity=0.25)
    of = [*others, {"use": "from_file", "path": str(ecoflap.run(few, folder=tmp_path / "few").folder)}]
    score = None if others == ["uniform"] else "magnitude"
    with pytest.raises(RecipeError, match=r"allocate: from_file: .*plan\.json: its plan keeps \d+ weights of these"):
        ecoflap.run(plain(score=score, allocate={"use": "best_of", "of": of}), folder=tmp_path / "run")
    assert not (tmp_path / "run" / "scores.jsonl").exists()


def test_a_run_refines_its_candidates_where_it_is_asked_to_and_comes_to_the_same(plain, lasting, tmp_path):
    """What is taken is refined by the run anew: it is the run of that candidate alone."""
    keys = {"score": None, "prune": "wanda", "refine": {"use": "reconstruct", "steps": 4}}
    other = {"use": "atp", "beta": 0.1}
    losses = {}
    for refine in (False, True):
        allocate = {"use": "best_of", "of": ["uniform", other], "refine": refine}
        run = ecoflap.run(plain(allocate=allocate, **keys), folder=tmp_path / str(refine))
        losses[refine] = {line["candidate"]: line["loss"] for line in read_lines(run.folder / "trials.jsonl")}
    assert all(losses[True][name] != losses[False][name] for name in ("uniform", "atp"))
    taken = "uniform" if losses[True]["uniform"] <= losses[True]["atp"] else other
    alone = ecoflap.run(plain(allocate=taken, **keys), folder=tmp_path / "alone")
    model = "model/model.safetensors"
    assert lasting(run.folder)[model] == lasting(alone.folder)[model]


@pytest.mark.parametrize("score", [{"use": "sensitivity", "samples": 2}, None])
def test_a_run_prunes_by_the_plan_that_was_taken(plain, lasting, tmp_path, score):
    """The run is that of its candidate alone, whichever it is."""
    other = {"use": "marginal", "above": 0.3} if score else {"use": "atp", "beta": 0.1}
    run = ecoflap.run(
        plain(score=score, allocate={"use": "best_of", "of": ["uniform", other]}), folder=tmp_path / "run"
    )
    losses = {line["candidate"]: line["loss"] for line in read_lines(run.folder / "trials.jsonl")}
    assert list(losses) == ["uniform", other["use"]]
    taken = "uniform" if losses["uniform"] <= losses[other["use"]] else other
    alone = ecoflap.run(plain(score=score, allocate=taken), folder=tmp_path / "alone")
    kept = {name: layer.keep for name, layer in alone.plan.layers.items()}
    assert {name: layer.keep for name, layer in run.plan.layers.items()} == kept
    model = "model/model.safetensors"
    assert lasting(run.folder)[model] == lasting(alone.folder)[model]
    assert any("held-out batches are uniform" in warning for warning in run.report.warnings)
