"""Rounds, and trials of several budgets, of models that stay in their files: the bits of a run in memory, resumed."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from killing import in_a_fork, killer_in
from offloaded import assert_alike, in_memory, recipe_of, stopping_behind, weights_in
from several import several

import ecoflap
from ecoflap.core.contracts.events import LayerPruned, Progress, RunStarted, StageStarted
from ecoflap.core.disk import whole_files
from ecoflap.core.errors import FormatError, RunError
from ecoflap.core.machine.memory import MemoryWatch, held
from ecoflap.core.model.anatomy import Block
from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import Places
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.pruning import finished_weights
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.verifying.verify import verify

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")

SLOW = pytest.mark.slow
EACH_WAY = [
    {"use": "reconstruct", "steps": 2},
    {"use": "reconstruct", "steps": 1, "each": "subblock", "target": "own"},
]
ROUNDS: dict[str, Any] = {"rounds": 3, "sparsity": 0.6, "prune": "sparsegpt"}
REFINED = {"rounds": 2, "sparsity": 0.6, "prune": "wanda", "refine": EACH_WAY, "score": None, "allocate": "uniform"}
TRIED = {"allocate": {"use": "best_of", "of": ["uniform", "ecoflap"]}, "prune": "sparsegpt"}
BOTH = {
    "allocate": {**TRIED["allocate"], "refine": True},
    "rounds": 2, "sparsity": 0.6, "prune": "wanda", "refine": EACH_WAY[:1],
}  # fmt: skip
GRADIENTS = {
    "score": {"use": "weight_metric", "metric": "magnitude_gradient"}, "allocate": "threshold", "rounds": 3,
    "prune": {"use": "by_metric", "metric": "magnitude_gradient", "compare": "layer"},
}  # fmt: skip


def kept_on_disk(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "calibration": {**recipe["calibration"], "keep": "disk"}}


def found(folder: Path) -> dict[str, bytes]:
    """Give what a run decided on, in every round."""
    names = ("scores.jsonl", "trials.jsonl", "plan.json", "masks.safetensors")
    files = [file for one in (folder, *folder.glob("rounds/*")) for name in names if (file := one / name).is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same(a: Path, b: Path) -> None:
    """Hold two runs to what is the same in every run, and to leaving nothing behind."""
    assert_alike(a, b)
    assert found(a) == found(b)
    assert not [*a.rglob("blocks"), *a.rglob(".*.partial"), *a.glob(".kept*")]


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("llama", ROUNDS),
        pytest.param("llama", REFINED, marks=SLOW),
        pytest.param("llama", GRADIENTS, marks=SLOW),
        ("llama-tied", {**TRIED, "include": ["lm_head"]}),
        pytest.param("llama-tied", {**ROUNDS, "rounds": 2, "sequential": True}, marks=SLOW),
        ("mixtral", REFINED),
        pytest.param("mixtral", BOTH, marks=SLOW),
        pytest.param("mixtral", ROUNDS, marks=SLOW),
        pytest.param("gpt_oss", TRIED, marks=SLOW),
        pytest.param("gpt_oss", REFINED, marks=SLOW),
    ],
)
@pytest.mark.parametrize("dtype", ["auto", pytest.param("bfloat16", marks=SLOW)])
def test_what_stays_on_the_disk_is_pruned_to_the_same_bits(kind, keys, dtype, tmp_path):
    recipe = recipe_of(kind, tmp_path, **keys)
    recipe["model"]["dtype"] = dtype
    before = {file: file.read_bytes() for file in (tmp_path / "dense").iterdir()}
    ecoflap.run(kept_on_disk(recipe), folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_same(tmp_path / "disk", tmp_path / "memory")
    assert {file: file.read_bytes() for file in (tmp_path / "dense").iterdir()} == before


@pytest.mark.parametrize("keys", [REFINED, BOTH])
def test_another_type_than_the_files_have(keys, tmp_path):
    recipe = recipe_of("llama", tmp_path, **keys)
    recipe["model"]["dtype"] = "bfloat16"
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_same(tmp_path / "disk", tmp_path / "memory")


@pytest.fixture(scope="module")
def unbroken_of(tmp_path_factory):
    """A recipe of a llama that stays in its files, and its unbroken run, which is made once."""
    made: dict[str, tuple[dict[str, Any], Path]] = {}

    def unbroken_of(keys: dict[str, Any]) -> tuple[dict[str, Any], Path]:
        if str(keys) not in made:
            folder = tmp_path_factory.mktemp("unbroken")
            recipe = recipe_of("llama", folder, **keys)
            made[str(keys)] = recipe, ecoflap.run(recipe, folder=folder / "run").folder
        return made[str(keys)]

    return unbroken_of


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_at(count: int, end: Callable[[], Any]) -> Callable[..., Any]:
    """Give what writes weights of finished blocks, and ends in the place of the n-th, or behind it where it is odd."""
    write, left = finished_weights.write_safetensors, [count]

    def written(path: Path, tensors: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and count % 2 == 0:
            end()
        hashes = write(path, tensors)
        if left[0] == 0:
            end()
        return hashes

    return written


def killed_at(count: int, recipe: dict[str, Any], folder: Path) -> int:
    """Run it in a process that kills itself at the n-th block that is written, trials' too; give how it ended."""

    def run() -> None:
        finished_weights.write_safetensors = dying_at(count, die)
        ecoflap.run(recipe, folder=folder)

    return in_a_fork({}, run)


BLOCKS = 2
"""Of the pico model: with two candidates in each of two rounds it writes six times as many."""


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        pytest.param(TRIED, 2, marks=SLOW),  # in the first trial
        pytest.param(TRIED, 2 * BLOCKS - 1, marks=SLOW),  # in the second one
        pytest.param(TRIED, BLOCKS + 1, marks=SLOW),
        pytest.param(ROUNDS, 2, marks=SLOW),
        pytest.param(ROUNDS, BLOCKS + 2, marks=SLOW),
        pytest.param(ROUNDS, 2 * BLOCKS + 1, marks=SLOW),
        (BOTH, 3 * BLOCKS + 2),  # in the first trial of the second round
        pytest.param(BOTH, 6 * BLOCKS - 1, marks=SLOW),
        (REFINED, BLOCKS + 2),
        *(pytest.param(GRADIENTS, count, marks=SLOW) for count in (2, BLOCKS + 2, 2 * BLOCKS + 1)),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(keys, count, unbroken_of, tmp_path):
    recipe, unbroken = unbroken_of(keys)
    assert killed_at(count, recipe, tmp_path / "run") == -signal.SIGKILL
    ecoflap.run(recipe, folder=tmp_path / "run")
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.parametrize(
    "point",
    [
        "rename:rounds/1/masks.safetensors:before",
        pytest.param("rename:rounds/2/masks.safetensors:after", marks=SLOW),
        pytest.param("rename:run/plan.json:after", marks=SLOW),
        pytest.param("rename:rounds/1/blocks/001.safetensors:before", marks=SLOW),
        pytest.param("rename:rounds/2/plan.json:after", marks=SLOW),
        pytest.param("rename:run/model:before", marks=SLOW),
        pytest.param("rename:run/model:after", marks=SLOW),
    ],
)
def test_between_rounds_too(point, unbroken_of, tmp_path):
    recipe, unbroken = unbroken_of(ROUNDS)
    folder = tmp_path / "run"
    assert in_a_fork(killer_in(tmp_path)(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    ecoflap.run(recipe, folder=folder)
    assert_same(folder, unbroken)


def test_a_run_that_goes_on_begins_with_the_last_round_that_is_finished(unbroken_of, heard_by, tmp_path):
    recipe, _ = unbroken_of(ROUNDS)
    heard: list[Any] = []
    assert killed_at(2 * BLOCKS + 2, recipe, tmp_path / "run") == -signal.SIGKILL
    ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(heard.append))
    begun = [event.stage for event in heard if isinstance(event, StageStarted)]
    assert [stage for stage in begun if stage.startswith("prune")] == ["prune, round 2", "prune"]
    (ahead,) = [event.stages for event in heard if isinstance(event, RunStarted)]
    assert list(ahead) == begun
    pruned = [event.name for event in heard if isinstance(event, LayerPruned)]
    assert len(pruned) == len(set(pruned)) == 7  # of the one block that was not finished


def test_a_run_that_is_killed_while_files_of_the_round_before_go(unbroken_of, tmp_path):
    recipe, unbroken = unbroken_of(ROUNDS)
    folder = tmp_path / "run"

    def run() -> None:
        def begun(path: Path, ignore_errors: bool = False) -> None:
            if path.parent.name == "1" and (found := [*path.glob("*.safetensors")]):
                found[0].unlink()
                die()

        whole_files.shutil = SimpleNamespace(rmtree=begun)
        ecoflap.run(recipe, folder=folder)

    assert in_a_fork({}, run) == -signal.SIGKILL
    assert (folder / "rounds/1/.blocks.partial").is_dir()  # and no block that is not whole
    assert not (folder / "rounds/1/blocks").exists()
    ecoflap.run(recipe, folder=folder)
    assert_same(folder, unbroken)


@SLOW
@pytest.mark.parametrize("keys", [BOTH, {**ROUNDS, "rounds": 4}])
def test_a_run_that_is_killed_again_and_again_gets_there(keys, unbroken_of, tmp_path):
    recipe, unbroken = unbroken_of(keys)
    kills = 0
    while killed_at(3 + kills % 2, recipe, tmp_path / "run"):
        kills += 1
        assert kills < 20
    assert kills > 2
    assert_same(tmp_path / "run", unbroken)


def test_files_that_nothing_needs_any_more_go(heard_by, unbroken_of, tmp_path):
    recipe, _ = unbroken_of({**BOTH, "rounds": 3})
    folder, seen = tmp_path / "run", {}

    def look(event: Any) -> None:
        if isinstance(event, Progress) and event.stage == "allocate":
            trials = [*folder.glob("blocks/trials/*"), *folder.glob("rounds/*/blocks/trials/*")]
            seen.setdefault("trials", []).append(len(trials))
        if isinstance(event, StageStarted) and event.stage.startswith("prune"):
            seen[event.stage] = sorted(str(one.relative_to(folder)) for one in folder.glob("rounds/*/blocks/shards"))

    ecoflap.run(recipe, folder=folder, registry=heard_by(look))
    assert seen == {
        "trials": [0] * 9,  # before, between and behind two of them, three times
        "prune, round 1": [],
        "prune, round 2": ["rounds/1/blocks/shards"],
        "prune": ["rounds/2/blocks/shards"],
    }


def test_a_damaged_block_of_the_round_before_is_refused_and_its_round_can_be_done_again(unbroken_of, tmp_path):
    recipe, unbroken = unbroken_of(ROUNDS)
    folder = tmp_path / "run"
    assert killed_at(2 * BLOCKS + 1, recipe, folder) == -signal.SIGKILL
    shard = folder / "rounds/2/blocks/shards/000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(FormatError, match=r"rounds/2/blocks/shards/000\.safetensors: the weight .* is not what was"):
        verify(folder)
    with pytest.raises(FormatError, match=r"000\.safetensors: the weight .* is not what was written .* Delete it"):
        ecoflap.run(recipe, folder=folder)
    (folder / "rounds/2/blocks/000.safetensors").unlink()
    ecoflap.run(recipe, folder=folder)
    assert_same(folder, unbroken)


def test_the_dense_weights_are_held_to_be_those_that_the_run_began_with(unbroken_of, heard_by, tmp_path):
    """They are looked at in the checkpoint's files, also in the last round, where no other weight of a block is."""
    keys, folder = REFINED, tmp_path / "run"
    recipe = recipe_of("llama", tmp_path, **keys)
    file = tmp_path / "dense" / "model-00002-of-00005.safetensors"
    stamp = file.stat()

    def change(event: Any) -> None:
        if isinstance(event, StageStarted) and event.stage == "prune":
            os.utime(file, ns=(0, 0))

    with pytest.raises(RunError, match=r"model-00002-of-00005\.safetensors changed while the model was read"):
        ecoflap.run(recipe, folder=folder, registry=heard_by(change))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    ecoflap.run(recipe, folder=folder)
    assert_same(folder, unbroken_of(keys)[1])


class LooksAtDenseWeights:
    """A refiner that trains nothing, and adds up what the matrices of blocks were in the dense model."""

    dense_weights = True
    seen: ClassVar[dict[str, torch.Tensor]] = {}

    def __call__(self, view: Any) -> None:
        self.seen.update({name: weight.abs().sum() for name, weight in view.dense_weights.items()})


def test_refiners_see_the_weights_that_the_checkpoint_has(heard_by, monkeypatch, tmp_path):
    monkeypatch.setattr(LooksAtDenseWeights, "seen", {})
    recipe = recipe_of("llama", tmp_path, **{**REFINED, "refine": LooksAtDenseWeights})
    stop = stopping_behind("layers.1.self_attn.o_proj")
    with pytest.raises(KeyboardInterrupt):
        ecoflap.run(recipe, folder=tmp_path / "run", registry=heard_by(stop))
    ecoflap.run(recipe, folder=tmp_path / "run")
    dense = weights_in(tmp_path / "dense")
    assert len(LooksAtDenseWeights.seen) == 7 * BLOCKS
    assert all(torch.equal(found, dense[name].abs().sum()) for name, found in LooksAtDenseWeights.seen.items())


@pytest.mark.parametrize(("kind", "count"), [("llama", BLOCKS + 2), pytest.param("mixtral", 9, marks=SLOW)])
def test_several_processes_come_to_the_bits_of_one(kind, count, tmp_path):
    recipe = recipe_of(kind, tmp_path, **BOTH)
    recipe["calibration"] = {**recipe["calibration"], "batch_size": 1}
    ecoflap.run(recipe, folder=tmp_path / "alone")
    for folder in (tmp_path / "together", tmp_path / "cut"):
        if folder.name == "cut":
            assert killed_at(count, recipe, folder) == -signal.SIGKILL
        ended = several(2, lambda ranks, folder=folder: ecoflap.run(recipe, folder=folder, ranks=ranks), tmp_path)
        assert ended == [(0, "")] * 2
        assert_same(folder, tmp_path / "alone")


def test_the_first_process_waits_until_others_hold_the_last_block_before_it_deletes_its_files(monkeypatch, tmp_path):
    recipe = recipe_of("llama", tmp_path, **{**REFINED, "rounds": 1})
    recipe["calibration"] = {**recipe["calibration"], "batch_size": 1}
    hold = finished_weights.FinishedWeights.hold

    def late(self: finished_weights.FinishedWeights, number: int, block: Block) -> None:
        """Let the first process come as far as to saving the model and deleting its blocks, if nothing holds it."""
        sleep(1.0 if os.environ["RANK"] == "1" else 0.0)
        hold(self, number, block)

    monkeypatch.setattr(finished_weights.FinishedWeights, "hold", late)
    ended = several(2, lambda ranks: ecoflap.run(recipe, folder=tmp_path / "run", ranks=ranks), tmp_path)
    assert ended == [(0, "")] * 2


@SLOW
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is held is not told apart from files")
@pytest.mark.parametrize(
    "keys",
    [
        {"rounds": 2, "allocate": "uniform", "refine": LooksAtDenseWeights},
        {"allocate": {"use": "best_of", "of": ["uniform", {"use": "atp", "beta": 0.02}]}},
    ],
)
def test_what_is_held_does_not_grow_with_the_model(keys, heard_by, tmp_path):
    """Neither by the dense weights that a refiner is to look at later, nor by what a trial is to put back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    recipe = recipe_of("llama", tmp_path, **keys, score=None, prune="magnitude", evaluate=None, export=None)
    ecoflap.run(recipe, folder=tmp_path / "first")  # libraries are imported
    config = LlamaConfig.from_pretrained(tmp_path / "dense")
    config.update({"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 40, "layer_types": None})
    model = LlamaForCausalLM(config)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "dense")
    del model
    most, on_disk = {}, {"disk": 0, "memory": 0}
    for name, one in (("disk", recipe), ("memory", in_memory(recipe))):

        def look(event: Any, name: str = name) -> None:
            on_disk[name] = max(on_disk[name], bytes_in(tmp_path / name))

        gc.collect()
        before, watch = held(), MemoryWatch()
        ecoflap.run(one, folder=tmp_path / name, registry=heard_by(look))
        watch.stop()
        most[name] = watch.most() - before
    needed = prepare(parse_recipe(recipe, registry=load_registry()), load_registry())
    predicted = disk_needs(needed, Places.asked(needed.recipe)).peak
    assert 0.95 * predicted < on_disk["disk"] < 1.02 * predicted
    assert most["disk"] < 0.5 * size
    assert most["memory"] > 0.9 * size  # and once more, but for what was freed before and is there to be taken


def bytes_in(folder: Path) -> int:
    """Add up the files of a folder, those of several names once."""
    files = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum({file.st_ino: file.st_size for file in files}.values())
