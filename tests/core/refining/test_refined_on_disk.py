"""The whole model refined while it stays in its files: the bits of a run in memory, resumed, and nothing held of it."""

import errno
import gc
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from killing import in_a_fork, killer_in
from offloaded import assert_alike, in_memory, recipe_of
from several import several

import ecoflap
from ecoflap.core.contracts.events import Progress, StageStarted
from ecoflap.core.errors import ModelError, RunError
from ecoflap.core.machine.memory import MemoryWatch, held
from ecoflap.core.refining.kept_steps import KeptSteps
from ecoflap.core.verifying.verify import verify

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is held is not told apart from files")
SLOW = pytest.mark.slow
TWICE = [{"use": "distill", "steps": 3, "batches": 2}, {"use": "distill", "steps": 3, "relative_rate": 1e-2}]


def recipe_with(refine: Any, folder: Path, kind: str = "llama", **model: Any) -> dict[str, Any]:
    recipe = recipe_of(kind, folder, score=None, allocate="uniform", prune="wanda", refine=refine, export=None)
    return {**recipe, "model": {**recipe["model"], **model}}


def refined(folder: Path) -> list[Any]:
    """Give what refiners did, but for the seconds."""
    told = ecoflap.read_report(folder / "report.json").refined
    return [(one.refiner, one.number, one.before, one.after, one.is_kept) for one in told]


class Momentum:
    """A refiner of somebody else, with an optimiser whose state begins as no zeros, and rates of a scheduler."""

    scope = "model"

    def __call__(self, view: Any) -> None:
        optimiser = torch.optim.SGD(view.parameters, lr=1e-3, momentum=0.9, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1)
        for step in view.steps(3, optimiser):
            optimiser.zero_grad(set_to_none=False)
            view.add_gradients(view.training[: step + 1])
            optimiser.step()
            scheduler.step()


class Looks(Momentum):
    """One that looks at what a module gives, and takes its hook away."""

    leaves = False

    def __call__(self, view: Any) -> None:
        handle = view.blocks[0][1].module.register_forward_hook(lambda module, given, output: None)
        super().__call__(view)
        if not self.leaves:
            handle.remove()


class Leaves(Looks):
    leaves = True


def test_a_hook_that_is_left_is_refused(tmp_path):
    recipe = recipe_with([{"use": Leaves}], tmp_path)
    with pytest.raises(ModelError, match=r"at the model, .*: a forward hook was left on model\.layers\.0\. "):
        ecoflap.run(recipe, folder=tmp_path / "disk")


@pytest.mark.parametrize(
    ("kind", "model", "refine"),
    [
        ("llama", {}, TWICE),
        ("llama", {"dtype": "bfloat16"}, ["reconstruct", {"use": Looks}]),
        pytest.param("llama", {"dtype": "bfloat16", "compute": "model"}, TWICE, marks=SLOW),
        pytest.param("llama-tied", {"dtype": "bfloat16", "compute": "float32"}, ["reconstruct", *TWICE], marks=SLOW),
        pytest.param("llama", {}, [{"use": Momentum}], marks=SLOW),
        ("gpt_oss", {"dtype": "bfloat16", "compute": "model"}, TWICE),
        pytest.param("gpt_oss", {}, TWICE, marks=SLOW),
        pytest.param("mixtral", {}, TWICE, marks=SLOW),
    ],
)
def test_what_stays_on_the_disk_is_refined_to_the_same_bits(kind, model, refine, tmp_path):
    recipe = recipe_with(refine, tmp_path, kind, **model)
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert refined(tmp_path / "disk") == refined(tmp_path / "memory")
    assert any(is_kept for *_, is_kept in refined(tmp_path / "disk"))
    assert not list((tmp_path / "disk").glob(".kept*"))
    assert not (tmp_path / "disk" / "blocks").exists()


def test_it_may_be_told_what_weights_were_and_follow_rounds(tmp_path):
    recipe = {**recipe_with([{"use": Momentum}], tmp_path), "rounds": 2, "sparsity": 0.6}
    ecoflap.run(recipe, folder=tmp_path / "disk")
    ecoflap.run(in_memory(recipe), folder=tmp_path / "memory")
    assert_alike(tmp_path / "disk", tmp_path / "memory")
    assert refined(tmp_path / "disk") == refined(tmp_path / "memory")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    ecoflap.run(in_memory(recipe_with(TWICE, folder)), folder=folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("every", "point", "told"),
    [
        (0.0, "event:Progress refine:3", [1, 2, 3, 0, 1, 2, 3]),  # whose second step is not kept yet
        pytest.param(1e9, "event:Progress refine:6", [0, 1, 2, 3], marks=SLOW),
        pytest.param(0.0, "event:Progress refine:7", [1, 2, 3], marks=SLOW),
        pytest.param(1e9, "rename:refined/shards/000.safetensors:before", [0, 1, 2, 3], marks=SLOW),
        pytest.param(0.0, "rename:refined/shards/001.safetensors:before", [2, 3], marks=SLOW),
        (0.0, "rename:refined/shards/001.safetensors:after", [2, 3]),
        (0.0, "event:StageStarted save:1", [2, 3]),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(unbroken, heard_by, tmp_path, monkeypatch, every, point, told):
    """In steps, between two refiners, and while blocks that were refined are put away."""
    monkeypatch.setattr(KeptSteps, "EVERY", every)
    recipe, folder, heard = recipe_with(TWICE, tmp_path), tmp_path / "run", []
    killed = in_a_fork(killer_in(tmp_path)(point), lambda: ecoflap.run(recipe, folder=folder))
    assert killed == -signal.SIGKILL
    assert not verify(folder).problems
    assert not (folder / "report.json").exists()
    ecoflap.run(recipe, folder=folder, registry=heard_by(heard.append))
    assert [event.done for event in heard if isinstance(event, Progress) and event.stage == "refine"] == told
    assert_alike(folder, unbroken)
    assert refined(folder) == refined(unbroken)
    assert not list(folder.glob(".*.partial"))


def test_it_is_that_of_several_processes_of_which_the_first_refines(unbroken, tmp_path):
    recipe = recipe_with(TWICE, tmp_path)
    ended = several(2, lambda ranks: ecoflap.run(recipe, folder=tmp_path / "run", ranks=ranks), tmp_path)
    assert ended == [(0, "")] * 2
    assert_alike(tmp_path / "run", unbroken)
    assert refined(tmp_path / "run") == refined(unbroken)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no call for it")
@pytest.mark.parametrize("number", [pytest.param(0, marks=SLOW), 40, pytest.param(150, marks=SLOW)])
def test_a_disk_that_fills_meanwhile_is_said_and_the_run_goes_on_later(unbroken, tmp_path, monkeypatch, number):
    """While masks are unpacked, of which there are 14; while gradients are put away; and in the second refiner."""
    recipe, folder, taken = recipe_with(TWICE, tmp_path), tmp_path / "run", []

    def full(descriptor: int, begin: int, size: int) -> None:
        taken.append(size)
        if len(taken) > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.truncate(descriptor, size)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(RunError, match=r"could not be written: the disk is full .*Make room"):
            ecoflap.run(recipe, folder=folder)
    assert not verify(folder).problems
    assert torch.zeros_like(torch.ones(2, 2)).untyped_storage().filename is None
    ecoflap.run(recipe, folder=folder)
    assert_alike(folder, unbroken)
    assert not list(folder.glob(".*.partial"))


def in_shared_files() -> list[range]:
    """Give the addresses of this process that the system may write back into a file and take away."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = [re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-s \S+ \S+ [1-9]", line) for line in maps]
    return [range(int(one[1], 16), int(one[2], 16)) for one in found if one]


class Looks:
    """A refiner that looks where everything lies, and keeps what is in no file by what it is."""

    scope = "model"
    held: ClassVar[dict[str, int]] = {}

    def __call__(self, view: Any) -> None:
        optimiser = torch.optim.Adam([{"params": [one]} for one in view.parameters], lr=1e-4, fused=True)
        for _ in view.steps(3, optimiser):
            optimiser.zero_grad()
            view.add_gradients(view.training)
            self.note("gradients", [one.grad for one in view.parameters])
            optimiser.step()
            state = [value for kept in optimiser.state.values() for value in kept.values() if value.dim()]
            assert len(state) == 2 * len(view.parameters)
            self.note("moments", state)
            self.note("weights", view.parameters)
        of_weights = [one for own in view.weights._trained for one in (own.kept, own.is_layer) if one is not None]
        self.note("masks", [*view.masks.values(), *of_weights])
        self.note("what is taken back", view.weights._remembered)

    def note(self, what: str, tensors: Any) -> None:
        places = in_shared_files()
        outside = [one for one in tensors if not any(one.data_ptr() in place for place in places)]
        self.held[what] = self.held.get(what, 0) + len(outside)


@LINUX
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*(pytest.param("llama", dtype, marks=SLOW) for dtype in ("bfloat16", "float32")), ("gpt_oss", "bfloat16")],
)
def test_nothing_that_is_as_large_as_the_model_lies_in_memory(tmp_path, monkeypatch, kind, dtype):
    """Behind another refiner: before that, what weights were is read from the model's own files."""
    monkeypatch.setattr(Looks, "held", {})
    monkeypatch.setattr(KeptSteps, "EVERY", 0.0)
    recipe = recipe_with([TWICE[1], {"use": Looks}], tmp_path, kind, dtype=dtype, compute="model")
    point = "event:Progress refine:7"  # of the second refiner's second step, behind the first that was kept
    assert in_a_fork(killer_in(tmp_path)(point), lambda: ecoflap.run(recipe, folder=tmp_path / "run")) != 0
    ecoflap.run(recipe, folder=tmp_path / "run")
    assert Looks.held == dict.fromkeys(["gradients", "moments", "weights", "masks", "what is taken back"], 0)


@SLOW
@LINUX
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_held_does_not_grow_with_the_model(tmp_path, heard_by, dtype):
    from pico_decoder import FAMILIES

    most, watch = {}, []

    def save(layers: int) -> None:
        config = FAMILIES["llama"].build().config
        config.update({"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": layers})
        type(FAMILIES["llama"].build())(config).save_pretrained(tmp_path / "dense")

    def look(event: Any) -> None:
        if isinstance(event, StageStarted) and event.stage == "refine":
            gc.collect()
            watch.append((held(), MemoryWatch()))
        if isinstance(event, StageStarted) and event.stage == "save":
            before, watched = watch.pop()
            watched.stop()
            most[layers] = watched.most() - before

    recipe = {**recipe_with(TWICE, tmp_path, dtype=dtype, compute="model"), "evaluate": None}
    for layers in (2, 12):
        for file in (tmp_path / "dense").glob("model*"):
            file.unlink()
        assert in_a_fork({}, lambda: save(layers)) == 0  # noqa: B023
        recipe.pop("evaluate", None)
        ecoflap.run(recipe, folder=tmp_path / f"{layers}", registry=heard_by(look))
    weights = 10 * (4 * 256 * 256 + 3 * 256 * 512)
    assert most[12] - most[2] < 2 * weights, most  # of the 17 bytes that each takes in memory
