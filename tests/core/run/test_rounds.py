"""Runs in rounds: exact counts after each, masks within those before, and the same bits wherever a run was killed."""

import json
import shutil
import signal
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from killing import in_a_fork

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.events import RunStarted, StageStarted
from ecoflap.core.errors import RecipeError
from ecoflap.core.planning.plan_file import read_plan


@pytest.fixture
def recipe(plain):
    return plain(rounds=3, sparsity=0.6)


def masks_of_rounds(folder):
    rounds = sorted((folder / "rounds").iterdir()) if (folder / "rounds").is_dir() else []
    return [ecoflap.load_masks(one) for one in (*rounds, folder)]


def decided(lasting, run):
    """What a run left but for its exports, whose manifests name the recipe."""
    return {name: data for name, data in lasting(run.folder).items() if not name.startswith("exports")}


def kept(masks):
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"prune": "magnitude"},
        {"prune": {"use": "sparsegpt", "block_size": 7}},
        {"prune": {"use": "refit", "inner": {"use": "swap", "inner": "wanda"}}},
        {"score": None, "allocate": {"use": "atp", "beta": 0.1}},
        {"score": {"use": "sensitivity", "samples": 2, "levels": [0.5, 0.7]}},
        {"score": {"use": "weight_metric", "metric": "magnitude_gradient"}},
        {"score": {"use": "weight_metric", "metric": "wanda", "granularity": "block"}, "prune": "magnitude"},
        {"score": None, "allocate": {"use": "best_of", "of": ["uniform", {"use": "atp", "beta": 0.1}]}},
        *(
            pytest.param(keys, marks=pytest.mark.slow)
            for keys in (
                {"prune": {"use": "wanda", "compare": "layer"}},
                {"prune": "admm"},
                {"prune": {"use": "by_metric", "metric": "ria"}},
                {"score": {"use": "zeroth_order", "samples": 2, "granularity": "layer"}},
            )
        ),
    ],
    ids=str,
)
def test_counts_are_exact_and_nothing_comes_back(recipe, keys, tmp_path):
    plain = {key: value for key, value in {**recipe, "export": [], **keys}.items() if value is not None}
    run = ecoflap.run(plain, folder=tmp_path / "run")
    rounds, size = masks_of_rounds(run.folder), run.plan.size
    shares = [round(1 - 0.4 ** (number / 3), 6) for number in (1, 2)]
    # in integers: ⌊size·(1 − share)⌋
    assert [kept(masks) for masks in rounds[:2]] == [size * (10**6 - round(s * 10**6)) // 10**6 for s in shares]
    assert kept(rounds[2]) == size * 4 // 10
    for before, after in pairwise(rounds):
        assert not any(bool((after[name] & ~before[name]).any()) for name in after)
    for name, mask in rounds[2].items():
        assert not bool((run.model.get_parameter(name) != 0)[~mask].any())
    assert not [note for note in run.report.warnings if "would bring" in note]


class Smallest:
    """Keeps the smallest weights, those first that an earlier round has pruned."""

    def __call__(self, weight, seen, budget, layer):
        mask = ecoflap.select(-weight.abs().float(), budget, "layer")
        return ecoflap.Pruned(mask, weight * mask)


def test_a_pruner_that_would_bring_weights_back_is_held_to_what_is_left(recipe, tmp_path):
    recipe = {key: value for key, value in recipe.items() if key != "score"}
    run = ecoflap.run({**recipe, "prune": Smallest, "rounds": 2, "export": []}, folder=tmp_path / "run")
    first, second = masks_of_rounds(run.folder)
    assert kept(second) == run.plan.size * 4 // 10
    assert not any(bool((second[name] & ~first[name]).any()) for name in second)
    (layer, *_) = [note for note in run.report.warnings if "would bring" in note]
    assert "that an earlier round has pruned, and the largest of those that are left stay instead" in layer


def test_rounds_of_a_list(recipe, tmp_path):
    run = ecoflap.run({**recipe, "rounds": [0.25, 0.6], "score": None, "export": []}, folder=tmp_path / "run")
    size = run.plan.size
    assert [kept(masks) for masks in masks_of_rounds(run.folder)] == [size * 75 // 100, size * 4 // 10]
    assert run.report.recipe.rounds == (0.25, 0.6)
    assert run.report.method == "uniform → wanda, 2 rounds"


def test_one_round_is_a_run_without_any(plain, lasting, tmp_path):
    one = ecoflap.run(plain(rounds=1), folder=tmp_path / "one")
    none = ecoflap.run(plain(), folder=tmp_path / "none")
    assert decided(lasting, one) == decided(lasting, none)
    assert not (one.folder / "rounds").exists()


def test_magnitude_in_rounds_is_magnitude_at_once(recipe, lasting, tmp_path):
    """Without scores and without a change of weights the last mask depends on the last sparsity alone."""
    plain = {**recipe, "prune": "magnitude", "score": None}
    del plain["score"]
    rounds = ecoflap.run(plain, folder=tmp_path / "rounds")
    once = ecoflap.run({**plain, "rounds": None}, folder=tmp_path / "once")
    assert decided(lasting, rounds) == decided(lasting, once)


def test_each_round_scores_the_model_as_the_one_before_left_it(recipe, pico, tmp_path):
    """The second round's scores and budgets are those of a run that begins with the first round's model."""
    recipe = {
        **recipe,
        "score": {"use": "first_order", "samples": 4},
        "export": [],
        "rounds": [0.3, 0.5],
        "sparsity": 0.5,
    }
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    first = ecoflap.run({**recipe, "rounds": None, "sparsity": 0.3}, folder=tmp_path / "first")
    same = (run.folder / "rounds/1/scores.jsonl", first.folder / "scores.jsonl")
    assert same[0].read_bytes() == same[1].read_bytes()
    assert read_plan(run.folder / "rounds/1/plan.json") == first.plan
    model = str(first.folder / "model")
    second = ecoflap.run({**recipe, "rounds": None, "model": model}, folder=tmp_path / "second")
    assert (run.folder / "scores.jsonl").read_bytes() == (second.folder / "scores.jsonl").read_bytes()
    assert (run.folder / "scores.jsonl").read_bytes() != same[0].read_bytes()
    left = read_plan(run.folder / "rounds/1/plan.json").layers
    assert all(second.plan.layers[name].keep <= left[name].keep for name in left)  # no cap is met here
    assert run.plan == second.plan


GLOBAL_GRADIENT = {
    "score": {"use": "weight_metric", "metric": "magnitude_gradient"},
    "allocate": "threshold",
    "prune": {"use": "by_metric", "metric": "magnitude_gradient", "compare": "layer"},
}


@dataclass(frozen=True)
class Windows:
    """Six windows of tokens, the same whenever they are asked for."""

    def __call__(self, adapter, model, note):
        yield from windows()


def windows():
    generator = torch.Generator().manual_seed(8)
    return [ecoflap.Sample(tokens=torch.randint(3, 60, (16,), generator=generator)) for _ in range(6)]


def test_global_gradient_pruning_is_that_of_a_sort_over_all_weights(pico_llama, tmp_path):
    """Three rounds by plain backwards and one sort: |W|·mean |g| of all layers, largest first."""
    recipe = {
        "version": 1, "sparsity": 0.6, "rounds": [0.216, 0.46, 0.6], "calibration": {"use": Windows, "batch_size": 2},
        **GLOBAL_GRADIENT,
    }  # fmt: skip
    run = ecoflap.run(recipe, model=pico_llama(), folder=tmp_path / "run")
    model, adapter = pico_llama(), LlamaAdapter()
    batches = [adapter.collate(model, windows()[at : at + 2]) for at in (0, 2, 4)]
    weights = {name: model.get_parameter(name) for name in run.plan.layers}
    for share, masks in zip((0.216, 0.46, 0.6), masks_of_rounds(run.folder), strict=True):
        sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for batch in batches:
            model.zero_grad()
            adapter.loss(model, batch).backward()
            sums = {name: total + weights[name].grad.abs() for name, total in sums.items()}
        metrics = {name: (total * weights[name].abs()).detach() for name, total in sums.items()}
        every = torch.cat([metric.flatten() for metric in metrics.values()])
        threshold = every.sort(descending=True).values[int(len(every) * (1 - share)) - 1]
        off = sum(int((masks[name] != (metric >= threshold)).sum()) for name, metric in metrics.items())
        assert off <= 4  # two ways to add gradients may exchange weights at the threshold
        assert len({float(masks[name].float().mean()) for name in masks}) > 5
        for name, weight in weights.items():
            weight.data.mul_(masks[name])


SLOW = pytest.mark.slow
POINTS = [
    "event:Progress score:3",
    "rename:rounds/1/plan.json:after",
    "rename:rounds/1/blocks/001.safetensors:after",
    "rename:rounds/1/masks.safetensors:after",
    "rename:rounds/2/plan.json:before",
    "rename:rounds/2/blocks/000.safetensors:after",
    "rename:run/plan.json:after",
    "rename:run/blocks/001.safetensors:after",
    "rename:run/model:before",
    "rename:run/model:after",
]


@pytest.fixture
def all_lasting(lasting):
    def all_lasting(folder):
        found = {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "rounds").rglob("*.*")}
        return {**lasting(folder), **found}

    return all_lasting


@pytest.fixture(scope="module")
def unbroken_of(tmp_path_factory):
    """The unbroken run of a pruner, made once."""
    made = {}

    def unbroken_of(name, recipe):
        if name not in made:
            made[name] = ecoflap.run(recipe, folder=tmp_path_factory.mktemp("unbroken") / "run").folder
        return made[name]

    return unbroken_of


@pytest.mark.parametrize(
    ("pruner", "point"),
    [
        *(pytest.param("wanda", point, marks=SLOW if number % 3 else ()) for number, point in enumerate(POINTS)),
        *(pytest.param("admm", point, marks=SLOW) for point in POINTS[2:7:2]),
        ("global gradient", "rename:rounds/2/blocks/000.safetensors:after"),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(recipe, unbroken_of, all_lasting, killer, tmp_path, point, pruner):
    recipe = {**recipe, **(GLOBAL_GRADIENT if pruner == "global gradient" else {"prune": pruner})}
    folder = tmp_path / "run"
    unbroken = unbroken_of(pruner, recipe)
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    ecoflap.run(recipe, folder=folder)
    assert all_lasting(folder) == all_lasting(unbroken)
    assert not [*folder.rglob("blocks")]


@SLOW
def test_a_run_that_is_killed_again_and_again_gets_there(recipe, unbroken_of, all_lasting, killer, tmp_path):
    folder, kills = tmp_path / "run", 0
    while in_a_fork(killer("event:Progress:12"), lambda: ecoflap.run(recipe, folder=folder)):
        kills += 1
        assert kills < 40
    assert kills > 5
    assert all_lasting(folder) == all_lasting(unbroken_of("wanda", recipe))


def test_a_model_that_was_deleted_is_made_anew_by_the_same_plans(recipe, unbroken_of, all_lasting, tmp_path):
    before = unbroken_of("admm", {**recipe, "prune": "admm"})
    folder = tmp_path / "run"
    shutil.copytree(before, folder)
    shutil.rmtree(folder / "model")
    ecoflap.run({**recipe, "prune": "admm"}, folder=folder)
    assert all_lasting(folder) == all_lasting(before)


def test_refiners_come_last_and_are_held_against_the_dense_model(recipe, pico, heard_by, tmp_path):
    refiners = [{"use": "reconstruct", "steps": 2}, {"use": "distill", "steps": 2}]
    recipe = {**recipe, "score": None, "export": [], "prune": "magnitude"}
    del recipe["score"]
    heard = []
    refined = ecoflap.run({**recipe, "refine": refiners}, folder=tmp_path / "run", registry=heard_by(heard.append))
    stages = [event.stage for event in heard if isinstance(event, StageStarted)]
    (ahead,) = [event.stages for event in heard if isinstance(event, RunStarted)]
    assert list(ahead) == stages
    assert [stage for stage in stages if stage.startswith(("prune", "refine"))] == [
        "prune, round 1",
        "prune, round 2",
        "prune",
        "refine",
    ]
    # magnitude in rounds has the masks of magnitude at once: what the refiners see is the same, the dense model and all
    once = ecoflap.run({**recipe, "rounds": None, "refine": refiners}, folder=tmp_path / "once")
    assert [one.before for one in refined.report.refined] == [one.before for one in once.report.refined]
    assert [one.name for one in refined.report.refined] == [
        "model.layers.0",
        "model.layers.1",
        "model.layers.2",
        "the model",
    ]
    for name, tensor in refined.model.state_dict().items():
        assert torch.equal(tensor, once.model.state_dict()[name])


def test_towers_have_rounds_of_their_own_sparsity(recipe, tmp_path):
    towers = {"language": {"sparsity": 0.3}}
    run = ecoflap.run({**recipe, "rounds": 2, "towers": towers, "export": []}, folder=tmp_path / "run")
    size, share = run.plan.size, round(1 - 0.7**0.5, 6)
    assert [kept(masks) for masks in masks_of_rounds(run.folder)] == [
        size * (10**6 - round(share * 10**6)) // 10**6,
        size * 7 // 10,
    ]


def test_verify_looks_at_every_round(recipe, unbroken_of, ecoflap_command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken_of("wanda", recipe), folder)
    code, out, _ = ecoflap_command("verify", folder)
    assert code == 0
    assert "not known" not in out
    for name in ("scores.jsonl", "plan.json", "masks.safetensors"):
        file = folder / "rounds" / "2" / name
        before = file.read_bytes()
        file.write_bytes(before[:-9] + b"x" + before[-8:])
        code, _, told = ecoflap_command("verify", folder)
        assert code != 0
        assert f"rounds/2/{name}" in told
        file.write_bytes(before)


def test_reuse_takes_the_dense_evaluation_over_and_no_scores(recipe, plain, unbroken_of, tmp_path):
    other = ecoflap.run(plain(sparsity=0.6), folder=tmp_path / "other")
    run = ecoflap.run({**recipe, "reuse": [str(other.folder)]}, folder=tmp_path / "run")
    assert json.loads((run.folder / "taken_over.jsonl").read_text())["what"] == "dense evaluation"
    assert run.report.measures.dense == other.report.measures.dense
    back = ecoflap.run(plain(sparsity=0.6, reuse=[str(run.folder)]), folder=tmp_path / "back")
    assert (back.folder / "scores.jsonl").read_bytes() == (other.folder / "scores.jsonl").read_bytes()


def test_one_round_is_none_and_may_stand_beside_what_has_no_rounds(plain, tmp_path):
    keys = {"score": None, "sparsity": "2:4", "prune": "magnitude", "evaluate": None, "export": None}
    run, without = (ecoflap.run(plain(**keys, rounds=n), folder=tmp_path / f"of-{n}") for n in (1, None))
    assert run.plan == without.plan
    masks = {"use": "from_masks", "path": str(run.folder)}
    taken = ecoflap.run(plain(**{**keys, "sparsity": None, "prune": masks}, rounds=1), folder=tmp_path / "taken")
    assert taken.plan.keep == run.plan.keep


def test_a_pattern_that_does_not_fit_is_told_once(plain, tmp_path):
    with pytest.raises(RecipeError) as refused:
        ecoflap.run(plain(score=None, sparsity="2:5", prune="magnitude"), folder=tmp_path / "run")
    (told,) = refused.value.problems
    assert told.startswith("pattern 2:5: the inputs of ")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"rounds": 0}, r"rounds: should be a number of rounds from 1 to 100, or a list of .* shares, .* not 0"),
        ({"rounds": True}, "rounds: should be a number of rounds"),
        ({"rounds": "3"}, "rounds: should be a number of rounds"),
        ({"rounds": []}, "rounds: should be a number of rounds"),
        (
            {"rounds": [0.4, 0.3, 0.6]},
            r"rounds: .* each larger than the one before, .* not \[0\.4, 0\.3, 0\.6\]\.",
        ),
        ({"rounds": [0.3, 1.0]}, "rounds: should be a number of rounds"),
        ({"rounds": [0.3, 0.5]}, r"rounds: the last round prunes 0\.5, and sparsity is 0\.6\. Make them the same"),
        ({"sparsity": "2:4", "score": None}, "rounds: the pattern 2:4 is pruned at once. Remove rounds:"),
        ({"towers": {"language": {"sparsity": "2:4"}}}, "rounds: the pattern 2:4 is pruned at once"),
        (
            {"rounds": [0.3, 0.6], "towers": {"language": {"sparsity": 0.5}}},
            "a list says nothing of language, with a sparsity of its own. Write how many rounds there are: 2",
        ),
        (
            {"allocate": {"use": "from_file", "path": "plan.json"}},
            "allocate: a plan of another run is for one sparsity",
        ),
        ({"score": {"use": "from_run", "run": "runs/first"}}, "score: .*each round scores the model as it is then"),
        ({"prune": {"use": "from_masks", "path": "m"}, "score": None}, "prune: masks are pruned at once"),
    ],
    ids=str,
)
def test_what_has_no_rounds_is_refused(recipe, keys, told, tmp_path):
    plain = {key: value for key, value in {**recipe, **keys}.items() if value is not None}
    with pytest.raises(RecipeError, match=told):
        ecoflap.run(plain, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
