"""Runs with refiners: what a recipe may write, what is kept of them, and that a killed one ends the same."""

import json
import signal
from typing import ClassVar

import pytest
import torch
from killing import in_a_fork
from safetensors.torch import load_file

import ecoflap
from ecoflap.core.contracts.events import Progress, Refined, StageStarted
from ecoflap.core.errors import EcoflapError, RecipeError
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.report.run_page import write_page
from ecoflap.core.verifying.verify import verify

REFINERS = [{"use": "reconstruct", "steps": 3, "learning_rate": 1e-3}, {"use": "distill", "steps": 4}]


@pytest.fixture
def recipe(plain):
    return plain(score=None, allocate="uniform", refine=REFINERS, export=None)


@pytest.fixture(scope="module")
def unbroken(plain, tmp_path_factory, lasting):
    recipe = plain(score=None, allocate="uniform", refine=REFINERS, export=None)
    return lasting(ecoflap.run(recipe, folder=tmp_path_factory.mktemp("unbroken") / "run").folder)


@pytest.mark.parametrize(
    "point",
    [
        "event:Refined :2",
        "rename:blocks/001.safetensors:after",
        "event:Refined :4",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in (
                "rename:blocks/001.safetensors:before",
                "event:StageStarted refine:1",
                "rename:masks.safetensors:after",
            )
        ),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(recipe, unbroken, lasting, killer, tmp_path, point):
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    report = ecoflap.run(recipe, folder=folder).report
    assert lasting(folder) == unbroken
    assert [one.name for one in report.refined] == [*(f"model.layers.{n}" for n in range(3)), "the model"]


@pytest.mark.parametrize("point", ["event:Refined :3", "rename:blocks/001.safetensors:before"])
def test_a_run_killed_between_two_sub_blocks_does_their_block_again(plain, lasting, killer, tmp_path, point):
    recipe = plain(score=None, export=None, refine={"use": "reconstruct", "steps": 3, "each": "subblock"})
    whole = ecoflap.run(recipe, folder=tmp_path / "whole")
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    report = ecoflap.run(recipe, folder=folder).report
    assert lasting(folder) == lasting(whole.folder)
    names = [f"model.layers.{number}.{part}" for number in range(3) for part in ("self_attn", "mlp")]
    assert [one.name for one in report.refined] == [one.name for one in whole.report.refined] == names


class LooksAtDenseWeights:
    """A refiner of somebody else, which holds on to what the matrices were."""

    dense_weights = True
    seen: ClassVar[dict[str, torch.Tensor]] = {}

    def __init__(self, each="block"):
        self.each = each

    def __call__(self, view):
        assert set(view.dense_weights) == set(view.masks)
        self.seen.update({name: weight.clone() for name, weight in view.dense_weights.items()})


@pytest.mark.parametrize("keys", [{}, {"rounds": 2}, {"sequential": True, "prune": "wanda"}])
@pytest.mark.parametrize("each", ["block", "subblock"])
def test_a_refiner_of_blocks_may_look_at_the_dense_weights(plain, pico, tmp_path, monkeypatch, keys, each):
    monkeypatch.setattr(LooksAtDenseWeights, "seen", {})
    recipe = plain(score=None, export=None, refine={"use": LooksAtDenseWeights, "each": each}, **keys)
    ecoflap.run(recipe, folder=tmp_path / "run")
    dense = load_file(pico / "model" / "model.safetensors")
    seen = LooksAtDenseWeights.seen
    assert len(seen) == 7 * 3
    assert all(torch.equal(weight, dense[name]) for name, weight in seen.items())


@pytest.mark.parametrize("keys", [{}, {"rounds": 2}])
def test_a_refiner_of_the_model_may_look_at_the_dense_weights(plain, pico, tmp_path, monkeypatch, keys):
    monkeypatch.setattr(LooksAtDenseWeights, "seen", {})
    monkeypatch.setattr(LooksAtDenseWeights, "scope", "model", raising=False)
    run = ecoflap.run(
        plain(score=None, export=None, prune="admm", refine=LooksAtDenseWeights, **keys), folder=tmp_path / "run"
    )
    dense = load_file(pico / "model" / "model.safetensors")
    assert LooksAtDenseWeights.seen.keys() == run.plan.layers.keys()
    assert all(torch.equal(weight, dense[name]) for name, weight in LooksAtDenseWeights.seen.items())


def test_dense_weights_are_held_for_those_that_ask_alone(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(LooksAtDenseWeights, "seen", {})
    monkeypatch.setattr(LooksAtDenseWeights, "dense_weights", False)
    monkeypatch.setattr(LooksAtDenseWeights, "__call__", lambda self, view: self.seen.update(view.dense_weights))
    ecoflap.run(plain(score=None, export=None, refine={"use": LooksAtDenseWeights}), folder=tmp_path / "run")
    assert LooksAtDenseWeights.seen == {}


class LooksAtTargets:
    """A refiner of somebody else, which keeps what blocks, or parts of them, are held against, and trains nothing."""

    seen: ClassVar[dict[tuple[str, str], list[torch.Tensor]]] = {}

    def __init__(self, target="dense", looks_at=("dense", "own"), both_targets=True, each="block"):
        self.target, self.looks_at, self.both_targets, self.each = target, looks_at, both_targets, each

    def __call__(self, view):
        batches = (*view.training, *view.held_out)
        for of in self.looks_at:
            self.seen[view.name, of] = [hidden.clone() for n in batches for hidden in view.targets(n, of)]


@pytest.mark.parametrize("each", ["block", "subblock"])
def test_a_refiner_of_blocks_may_look_at_both_targets(plain, tmp_path, monkeypatch, each):
    def seen_by(name, **parameters):
        monkeypatch.setattr(LooksAtTargets, "seen", {})
        refine = {"use": LooksAtTargets, "each": each, **parameters}
        ecoflap.run(plain(score=None, export=None, refine=refine), folder=tmp_path / name)
        return LooksAtTargets.seen

    both = seen_by("both", target="own")
    alone = seen_by("dense", target="dense", looks_at=["dense"], both_targets=False)
    alone |= seen_by("own", target="own", looks_at=["own"], both_targets=False)
    assert len(both) == 2 * 3 * (2 if each == "subblock" else 1)
    assert both.keys() == alone.keys()
    for place, hidden in both.items():
        assert all(map(torch.equal, hidden, alone[place]))
    for name, of in both:  # before the first block nothing is pruned
        differ = not all(map(torch.equal, both[name, of], both[name, "own"]))
        assert differ == (of == "dense" and not name.startswith("model.layers.0"))


@pytest.mark.parametrize(("target", "other"), [("dense", "own"), ("own", "dense")])
def test_a_refiner_that_does_not_say_that_it_looks_at_both_is_told(plain, tmp_path, target, other):
    asked = {"use": LooksAtTargets, "target": target, "looks_at": [other], "both_targets": False}
    expected = f"model.layers.0: no targets called {other!r} were recorded, but {target}. .* says both_targets = True"
    with pytest.raises(EcoflapError, match=expected):
        ecoflap.run(plain(score=None, export=None, refine=asked), folder=tmp_path / "run")


class LooksInside:
    """A refiner of somebody else: one step down the errors of a block and of all of its sub-blocks together."""

    inside = True
    seen: ClassVar[list[tuple[str, ...]]] = []

    def __call__(self, view):
        optimiser = torch.optim.SGD(view.parameters, lr=0.005)
        view.add_gradient(view.training[0])
        with view.objectives_inside(view.training[0]) as errors:
            sum(errors.values()).backward()
        optimiser.step()
        self.seen.append(tuple(errors))


def test_a_refiner_of_blocks_may_look_inside_of_them(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(LooksInside, "seen", [])
    run = ecoflap.run(plain(score=None, export=None, refine={"use": LooksInside}), folder=tmp_path / "run")
    blocks = [f"model.layers.{number}" for number in range(3)]
    assert [one.name for one in run.report.refined if one.is_kept] == blocks
    assert LooksInside.seen == [(f"{block}.self_attn", f"{block}.mlp") for block in blocks]


A_TRY = [0, 1, 2, 3, 4]
"""What a try of four steps tells; so few mend nothing here, so that there are three of them."""


@pytest.mark.parametrize(
    ("number", "expected"), [(4, [2, 3, 4, *A_TRY, *A_TRY]), (5 + 4, [2, 3, 4, *A_TRY]), (2 * 5 + 4, [2, 3, 4])]
)
def test_the_steps_of_a_killed_refiner_are_not_done_again(
    recipe, unbroken, lasting, killer, heard_by, tmp_path, monkeypatch, number, expected
):
    """A try's first event tells that no step is done, and its fourth comes before the step that it is of is kept."""
    monkeypatch.setattr(KeptSteps, "EVERY", 0.0)
    folder, point = tmp_path / "run", f"event:Progress refine:{number}"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    assert (folder / "blocks" / "refining.safetensors").is_file()
    assert not verify(folder).problems
    heard = []
    report = ecoflap.run(recipe, folder=folder, registry=heard_by(heard.append)).report
    steps = [event.done for event in heard if isinstance(event, Progress) and event.stage == "refine"]
    assert steps == expected
    assert lasting(folder) == unbroken
    assert [one.refiner for one in report.refined] == ["reconstruct"] * 3 + ["distill"]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1e9, [0, 1, 2, 3, 4]), (0.0, [2, 3, 4])],
    ids=["behind a finished refiner", "and from the steps of the next one"],
)
def test_a_run_that_is_killed_in_a_later_refiner_goes_on_there(
    plain, lasting, killer, heard_by, tmp_path, monkeypatch, every, expected
):
    """Two refiners of the model take four steps each, and tell that none is done too; of the second three are told."""
    monkeypatch.setattr(KeptSteps, "EVERY", every)
    twice = [{"use": "distill", "steps": 4}, {"use": "distill", "steps": 4, "learning_rate": 1e-4}]
    recipe = plain(score=None, allocate="uniform", refine=twice, export=None)
    whole = ecoflap.run(recipe, folder=tmp_path / "whole")
    folder = tmp_path / "run"
    point = f"event:Progress refine:{5 + 4}"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    assert (folder / "blocks" / "refined.safetensors").is_file()
    assert not verify(folder).problems
    heard = []
    report = ecoflap.run(recipe, folder=folder, registry=heard_by(heard.append)).report
    assert [event.done for event in heard if isinstance(event, Progress) and event.stage == "refine"] == expected
    assert lasting(folder) == lasting(whole.folder)
    assert [(one.refiner, one.after) for one in report.refined] == [
        (one.refiner, one.after) for one in whole.report.refined
    ]
    assert len(report.refined) == 2


def test_refiners_that_are_alike_and_do_the_same_are_each_told(plain, killer, tmp_path):
    """Steps far too long are taken back, by the one as by the other; and a killed run tells no block's twice."""
    both = [{"use": "reconstruct", "steps": 1, "learning_rate": 1e3}] * 2
    recipe, folder = plain(score=None, allocate="uniform", refine=both, export=None), tmp_path / "run"
    assert in_a_fork(killer("event:Refined :4"), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    report = ecoflap.run(recipe, folder=folder).report
    assert not any(one.is_kept for one in report.refined)
    assert [(one.name, one.number) for one in report.refined] == [
        (f"model.layers.{block}", number) for block in range(3) for number in range(2)
    ]


def test_what_refiners_did_is_told_and_kept(recipe, heard_by, tmp_path):
    heard = []
    run = ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(heard.append))
    told = [event for event in heard if isinstance(event, Refined)]
    assert [(one.refiner, one.name) for one in run.report.refined] == [(one.refiner, one.name) for one in told]
    assert all(
        one.before["held_out"] == kept.before["held_out"] for one, kept in zip(told, run.report.refined, strict=True)
    )
    assert "refine" in [event.stage for event in heard if isinstance(event, StageStarted)]
    assert run.report.method == "uniform → wanda → reconstruct → distill"
    page = write_page(tmp_path / "run", run.report).read_text()
    assert "What refiners did, and pruners that mend" in page
    assert "reconstruct" in page


def test_what_a_pruner_mended_is_kept_as_refiners_are_without_batches_that_are_held_out(plain, tmp_path):
    mends = {"use": "refit", "inner": "swap"}
    run = ecoflap.run(plain(score=None, allocate="uniform", export=None, prune=mends), folder=tmp_path / "run")
    told = [(one.name, one.refiner, one.number) for one in run.report.refined]
    assert told == [(f"model.layers.{block}", by, None) for block in range(3) for by in ("swap", "refit")]
    assert all(one.before.keys() == one.after.keys() == {"training"} for one in run.report.refined)
    page = write_page(tmp_path / "run", run.report).read_text()
    assert f"{run.report.refined[0].before['training']:.4g}" in page


def test_masks_are_those_without_refiners_in_the_first_block(recipe, plain, tmp_path):
    refined = ecoflap.run(recipe, folder=tmp_path / "run")
    alone = ecoflap.run(plain(score=None, allocate="uniform", export=None), folder=tmp_path / "alone")
    one, other = (ecoflap.load_masks(run.folder) for run in (refined, alone))
    for name in one:
        assert int(one[name].sum()) == int(other[name].sum())
        weight = refined.model.get_parameter(name)
        assert not bool((weight != 0)[~one[name]].any())
        if "layers.0." in name:
            assert torch.equal(one[name], other[name])
            assert not torch.equal(weight, alone.model.get_parameter(name))


def test_a_tower_may_have_its_own_or_none(plain, tmp_path):
    recipe = plain(score=None, export=None, refine=REFINERS[:1], towers={"language": {"refine": []}})
    assert ecoflap.run(recipe, folder=tmp_path / "run").report.refined == ()
    recipe = plain(score=None, export=None, towers={"language": {"refine": REFINERS[:1]}})
    assert len(ecoflap.run(recipe, folder=tmp_path / "other").report.refined) == 3


def test_a_refiner_of_the_model_is_of_no_tower(plain, tmp_path):
    recipe = plain(score=None, export=None, towers={"language": {"refine": ["distill"]}})
    with pytest.raises(RecipeError, match=r"towers\.language\.refine\.0: distill refines the whole model"):
        ecoflap.run(recipe, folder=tmp_path / "run")


def test_a_refiner_needs_data(plain, tmp_path):
    recipe = plain(score=None, export=None, prune="magnitude", refine=REFINERS, calibration=None)
    with pytest.raises(RecipeError, match="the refiner reconstruct and the refiner distill look at data"):
        ecoflap.run(recipe, folder=tmp_path / "run")


def test_a_run_without_refiners_is_as_before(plain, tmp_path):
    run = ecoflap.run(plain(score=None, export=None), folder=tmp_path / "run")
    assert "refine" not in json.loads((run.folder / "report.json").read_text())["recipe"]
    assert run.report.refined == ()
    assert not (run.folder / "refined.jsonl").exists()
