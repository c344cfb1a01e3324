"""A run on several processes comes to what it comes to on one, bit by bit, however it is cut off."""

import errno
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from killing import killer_in
from several import Started, several

import ecoflap
from ecoflap import ColumnNorm, Pruned, Replay, select
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError, RunError
from ecoflap.core.machine.part_code import PartCode
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.record.report import read_report
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run import pipeline
from ecoflap.core.run.run_model import RunModel
from ecoflap.core.run.same_ranks import (
    check_same_asked,
    check_same_code,
    check_same_device,
    refuse_numbered_device,
)
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.zeroth_order import ZerothOrder


class Counting(LlamaAdapter):
    """Counts the losses that a process computes."""

    _losses = 0

    def loss(self, model, batch):
        Counting._losses += 1
        return super().loss(model, batch)


class OfItsOwn(ZerothOrder):
    """A scorer of somebody who has never heard of several processes."""

    shares = False


class OfItsOwnRows(Wanda):
    """A pruner whose statistic is nobody else's."""


@pytest.fixture
def data(pico):
    def data(samples, **keys):
        text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": samples}
        return {**text, "portion": [0, 0.7], **keys}

    return data


@pytest.fixture
def recipes(plain, data):
    held = data(3, portion=[0.7, 1], order="spread")
    sums = plain(
        calibration=data(5, batch_size=1),
        score={"use": "zeroth_order", "samples": 5, "joint": True},
        prune="sparsegpt",
    )
    trained = plain(
        calibration=data(5, batch_size=1),
        score={"use": "sensitivity", "samples": 4, "levels": [0.5, 0.7]},
        allocate={"use": "best_of", "of": ["uniform", "marginal"], "refine": True},
        prune="admm",
        refine=[
            {"use": "reconstruct", "steps": 2},
            {"use": "reconstruct", "steps": 1, "each": "subblock"},
            {"use": "reconstruct", "steps": 1, "each": "subblock", "target": "own"},
            {"use": "distill", "steps": 2, "batches": 2},
            {"use": "distill", "steps": 2, "learning_rate": 1e-4},
        ],
        evaluate=[{"use": "loss", "batch_size": 1, "data": held}, {"use": "kl", "data": held}],
        export=None,
    )
    gradients = plain(
        calibration=data(4, batch_size=1),
        score={"use": "first_order", "samples": 4},
        prune={"use": "by_metric", "metric": "wanda_plus_plus"},
        rounds=2,
        sequential=True,
        export=None,
    )
    few = plain(calibration=data(3, batch_size=1), evaluate=None, export=None)
    in_turn = plain(
        calibration=data(5, batch_size=1),
        score=None,
        allocate="uniform",
        prune="sparsegpt",
        sequential=True,
        export=None,
    )
    return {
        "in turn": in_turn,
        "sums": sums,
        "trained": trained,
        "gradients": gradients,
        "loss gradients": {
            **few,
            "score": "local_metric",
            "prune": {"use": "by_metric", "metric": "magnitude_gradient"},
        },
        "weights": {**few, "score": {"use": "weight_metric", "metric": "ria"}, "allocate": "threshold", "rounds": 2},
        "weights of gradients": {
            **few,
            "score": {"use": "weight_metric", "metric": "magnitude_gradient"},
            "prune": {"use": "by_metric", "metric": "magnitude_gradient", "compare": "layer"},
        },
        "of others": {**few, "score": {"use": OfItsOwn, "samples": 1}, "prune": OfItsOwnRows},
        "no data": plain(
            calibration=None, score=None, allocate="uniform", prune="magnitude", evaluate=None, export=None
        ),
    }


@pytest.fixture
def everything(lasting):
    """All that is to be the same, however many processes there were."""

    def everything(folder):
        evaluations = folder / "evaluations.jsonl"
        return lasting(folder) | {"evaluations": evaluations.read_bytes() if evaluations.is_file() else b""}

    return everything


SLOW = pytest.mark.slow
CASES = [
    ("sums", 2),
    pytest.param("sums", 4, marks=SLOW),
    ("in turn", 2),
    pytest.param("in turn", 4, marks=SLOW),
    pytest.param("trained", 2, marks=SLOW),
    pytest.param("gradients", 3, marks=SLOW),
    pytest.param("loss gradients", 2, marks=SLOW),
    ("weights", 2),
    pytest.param("weights of gradients", 2, marks=SLOW),
    pytest.param("of others", 2, marks=SLOW),
    ("no data", 2),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_several_processes_come_to_the_bits_of_one(recipes, name, size, everything, tmp_path):
    alone = ecoflap.run(recipes[name], folder=tmp_path / "alone")

    def together(ranks):
        done = ecoflap.run(recipes[name], folder=tmp_path / "together", ranks=ranks)
        assert done.report.sparsity == alone.report.sparsity
        for ours, theirs in zip(done.model.parameters(), alone.model.parameters(), strict=True):
            assert bool((ours == theirs).all())

    assert several(size, together, tmp_path) == [(0, "")] * size
    assert everything(tmp_path / "together") == everything(tmp_path / "alone")
    assert read_report(tmp_path / "together" / "report.json").measures == alone.report.measures


class Overflows:
    """Gives what it keeps of a matrix values that overflow in products, but where it keeps half of them."""

    needs = (ColumnNorm,)

    def __call__(self, weight, seen, budget, layer):
        mask = select(weight.abs(), budget, "row")
        half = 2 * budget.keep_of(weight.numel()) == weight.numel()
        return Pruned(mask, mask * (weight if half else torch.full_like(weight, 3e37)))


def test_processes_that_see_a_candidate_overflow_go_on_together(plain, data, tmp_path):
    of = [{"use": "atp", "beta": 0.1}, "uniform"]
    recipe = plain(
        calibration=data(3, batch_size=1),
        score=None,
        allocate={"use": "best_of", "of": of},
        prune=Overflows,
        evaluate=None,
        export=None,
    )
    run = ecoflap.run(recipe, folder=tmp_path / "alone")
    assert any("the model pruned by atp has no finite loss: model.layers.1" in one for one in run.report.warnings)
    together = partial(ecoflap.run, recipe, folder=tmp_path / "together")
    assert several(2, lambda ranks: together(ranks=ranks), tmp_path) == [(0, "")] * 2
    assert (tmp_path / "together" / "trials.jsonl").read_bytes() == (run.folder / "trials.jsonl").read_bytes()


def test_each_of_two_computes_half_of_the_losses(plain, data, pico, tmp_path):
    model = {"source": str(pico / "model"), "adapter": Counting}
    score = {"use": "zeroth_order", "samples": 4, "joint": True}
    recipe = plain(model=model, calibration=data(4, batch_size=1), score=score, evaluate=None, export=None)

    def count(ranks):
        Counting._losses = 0
        ecoflap.run(recipe, folder=tmp_path / f"of {ranks.size}", ranks=ranks)
        (tmp_path / f"count {ranks.size} {ranks.rank}").write_text(str(Counting._losses))

    count(ALONE)
    assert several(2, count, tmp_path) == [(0, "")] * 2
    (alone,) = (int(path.read_text()) for path in tmp_path.glob("count 1 *"))
    assert all(0.5 * alone <= int(path.read_text()) < 0.6 * alone for path in tmp_path.glob("count 2 *"))


@pytest.mark.parametrize(
    ("name", "point", "then"),
    [
        ("sums", "event:LayerPruned:10", 1),
        pytest.param("sums", "event:Progress score:2", 4, marks=SLOW),
        pytest.param("trained", "event:Progress refine:5", 1, marks=SLOW),  # in the second of two, of two steps each
    ],
)
def test_a_killed_run_goes_on_with_another_number_of_processes(
    recipes, everything, name, point, then, tmp_path, monkeypatch
):
    ecoflap.run(recipes[name], folder=tmp_path / "alone")
    folder = tmp_path / "run"
    with monkeypatch.context() as environment:
        for variable, value in killer_in(tmp_path)(point).items():
            environment.setenv(variable, value)
        environment.syspath_prepend(tmp_path)
        ended = several(2, lambda ranks: ecoflap.run(recipes[name], folder=folder, ranks=ranks), tmp_path)
    assert [one.code for one in ended] == [-signal.SIGKILL, 2]
    assert ended[1].said.startswith("RankError: rank 0 of 2 has ended this run: it ended with -9. The same command")
    assert not (folder / "report.json").exists()
    again = partial(ecoflap.run, recipes[name], folder=folder)
    assert several(then, lambda ranks: again(ranks=ranks), tmp_path) == [(0, "")] * then
    assert everything(folder) == everything(tmp_path / "alone")


def filling(rank, call, named):
    """Give what several processes do where the disk of one is full as soon as a call is about such a file."""

    def run(ranks, run):
        real = getattr(os, call)

        def full(descriptor, *more):
            if named in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, *more)

        if ranks.rank == rank:
            setattr(os, call, full)  # in a process of its own
        run(ranks=ranks)

    return run


needs_linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system names open files otherwise")
FULL = "could not be written: the disk is full "
WAY_OUT = "Make room, then run the same command again: what is finished is kept."


@needs_linux
@pytest.mark.parametrize("offload", [None, pytest.param("disk", marks=SLOW)])
def test_a_disk_that_fills_ends_all_with_one_sentence_and_the_run_goes_on(recipes, everything, offload, tmp_path):
    """The first of two writes all blocks; the second waits for it meanwhile."""
    if offload:
        pytest.importorskip("transformers", minversion="5", reason="weights stay in their files from version 5 on")
        pytest.importorskip("accelerate")
    recipe = {**recipes["sums"], "model": {"source": recipes["sums"]["model"], "offload": offload}}
    ecoflap.run(recipe, folder=tmp_path / "alone")
    folder = tmp_path / "run"
    run = partial(ecoflap.run, recipe, folder=folder)
    fill = filling(0, "fsync", "/run/blocks/shards/.001" if offload else "/run/blocks/.001")
    first, second = several(2, lambda ranks: fill(ranks, run), tmp_path)
    assert (first.code, second.code) == (2, 2)
    assert first.said.startswith(f"NotWritten: {folder / 'blocks'}/")
    assert f"001.safetensors {FULL}" in first.said
    assert first.said.endswith(WAY_OUT)
    assert second.said.startswith("SaidElsewhereError: rank 0 of 2 has ended this run: ")  # the user is not told twice
    assert FULL in second.said
    assert [path.name for path in (folder / "blocks").glob("*.safetensors")] == ["000.safetensors"]
    assert several(2, lambda ranks: run(ranks=ranks), tmp_path) == [(0, "")] * 2
    assert everything(folder) == everything(tmp_path / "alone")


@needs_linux
@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system makes room otherwise")
def test_a_full_disk_of_another_than_the_first_is_said_with_its_rank(recipes, everything, tmp_path):
    """As where what it recorded of its own batches lies on a disk of its machine."""
    recipe = {**recipes["sums"], "calibration": {**recipes["sums"]["calibration"], "keep": "disk"}}
    ecoflap.run(recipe, folder=tmp_path / "alone")
    run = partial(ecoflap.run, recipe, folder=tmp_path / "run")
    fill = filling(1, "posix_fallocate", "/run/")
    first, second = several(2, lambda ranks: fill(ranks, run), tmp_path, Started(apart=True))
    assert (first.code, second.code) == (2, 2)
    assert first.said.startswith("RankError: rank 1 of 2 has ended this run: ")  # the second writes elsewhere
    assert FULL in first.said
    assert second.said.startswith("RankError: rank 1 of 2: ")
    assert FULL in second.said
    assert second.said.endswith(WAY_OUT)
    assert several(2, lambda ranks: run(ranks=ranks), tmp_path) == [(0, "")] * 2
    assert everything(tmp_path / "run") == everything(tmp_path / "alone")


def refused(tmp_path, recipe_of, size=2):
    """Give what is said first where several processes are refused; nothing is left of the run."""
    folder = tmp_path / "run"
    ended = several(size, lambda ranks: ecoflap.run(recipe_of(ranks.rank), folder=folder, ranks=ranks), tmp_path)
    assert [one.code for one in ended] == [2] * size
    assert not folder.exists()
    assert all(one.said.startswith("SaidElsewhereError") for one in ended[1:])
    return ended[0].said


class Unsendable(ColumnNorm):
    """A statistic that holds what no pickle does."""

    def __init__(self, in_features):
        super().__init__(in_features)
        self.told = lambda: None


class OfTheUnsendable(Wanda):
    """A pruner that asks for it."""

    needs = (Unsendable,)


def test_a_statistic_that_cannot_be_sent_is_refused_by_name(plain, tmp_path):
    said = refused(tmp_path, lambda rank: plain(prune=OfTheUnsendable))
    assert "the statistic Unsendable of the pruner " in said
    assert "cannot be sent from process to process" in said


def test_a_batch_of_another_process_is_refused_with_ones_own(pico_llama, tmp_path):
    ids = [torch.full((1, 4), number) for number in range(4)]

    def ask(ranks):
        batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
        replay = Replay(pico_llama(layers=1), LlamaAdapter(), batches, ranks=ranks)
        assert list(replay.own) == [2 * ranks.rank, 2 * ranks.rank + 1]
        assert torch.equal(replay.loss(0)[replay.own], replay.loss(0, replay.own))
        with pytest.raises(ModelError, match=r"batch \d is none of this process', which has \d, \d: .*each\(\)"):
            replay.loss(0, [3 - 3 * ranks.rank])

    assert several(2, ask, tmp_path) == [(0, "")] * 2


def test_another_recipe_is_named_with_its_rank(recipes, tmp_path):
    said = refused(tmp_path, lambda rank: {**recipes["sums"], "sparsity": 0.5 + 0.1 * rank})
    assert "rank 1 has another recipe: sparsity: 0.5 vs 0.6 (rank 0's vs its own)" in said


def test_other_versions_are_named_with_their_rank(recipes, tmp_path, monkeypatch):
    def run(rank):
        if rank:
            monkeypatch.setattr("ecoflap.core.run.pipeline.versions", lambda used: {"torch": "0.1"})
        return recipes["sums"]

    said = refused(tmp_path, run)
    assert "rank 1 has torch 0.1, and rank 0 " in said
    assert "rank 1 has python absent" in said.lower()


OWN_PART = """
from ecoflap import hookimpl
from ecoflap.plugins.pruners.wanda import Wanda

class Own(Wanda):
    'A pruner of disk {rank}.'

@hookimpl
def ecoflap_register_pruners():
    return {{"own": Own}}
"""


@pytest.mark.parametrize("named", ["own_part:Own", "own"])
def test_another_source_of_a_part_is_named_with_its_rank(plain, named, tmp_path, monkeypatch):
    for rank in range(2):  # as two machines have a module
        (tmp_path / f"disk {rank}").mkdir()
        (tmp_path / f"disk {rank}" / "own_part.py").write_text(OWN_PART.format(rank=rank))
    registry = tmp_path / "registry.yaml"
    registry.write_text("version: 1\nplugins: {own: own_part}\n")

    def run(ranks):
        monkeypatch.syspath_prepend(tmp_path / f"disk {ranks.rank}")
        parts = load_registry(None if ":" in named else registry, allow_code=":" in named)
        ecoflap.run(plain(prune=named), folder=tmp_path / "run", registry=parts, ranks=ranks)

    first, _ = several(2, run, tmp_path)
    files = [f"{tmp_path}/disk {rank}/own_part.py of SHA-256 " for rank in range(2)]
    assert f"rank 1 has another source of own_part, which is to be the same everywhere: {files[0]}" in first.said
    assert f" vs {files[1]}" in first.said
    assert not (tmp_path / "run").exists()


class Second(Ranks):
    """The second of two processes, by what the first has."""

    rank, size = 1, 2

    def __init__(self, first):
        self._first = first

    def gather(self, mine):
        return [self._first, mine]


RUN = str(Path("run").absolute())


def test_another_folder_is_named_with_its_rank_before_one_is_emptied(recipes, everything, tmp_path):
    ecoflap.run(recipes["no data"], folder=tmp_path / "run 0")
    before = everything(tmp_path / "run 0")

    def run(ranks):
        ecoflap.run(recipes["no data"], folder=tmp_path / f"run {ranks.rank}", fresh=True, ranks=ranks)

    first, second = several(2, run, tmp_path)
    assert everything(tmp_path / "run 0") == before
    assert (first.code, second.code) == (2, 2)
    assert f"rank 1 has another folder: {tmp_path}/run 0 vs {tmp_path}/run 1 (rank 0's vs its own)" in first.said
    assert not (tmp_path / "run 1").exists()


def test_a_folder_is_to_be_the_same_in_all(plain):
    """Each reads from its own what the first has written into its."""
    recipe = parse_recipe(plain(), registry=load_registry())
    with pytest.raises(RunError, match=r"rank 1 has another folder: \S+run vs /other/run\b"):
        check_same_asked(Second((recipe.plain(), RUN, RUN)), recipe, Path("/other/run"))


def test_a_folder_may_lead_elsewhere_on_the_machine_whose_disk_it_is(plain):
    recipe = parse_recipe(plain(), registry=load_registry())
    check_same_asked(Second((recipe.plain(), RUN, "/export/run")), recipe, Path("run"))
    check_same_asked(Second((recipe.plain(), "/a/link", RUN)), recipe, Path("run"))


def test_a_source_may_lie_elsewhere():
    ranks = Second(({}, {"part": PartCode("/a/part.py", "0" * 64)}))
    check_same_code(ranks, {}, {"part": PartCode("/b/part.py", "0" * 64)})
    said = r"another source of part, .*: /a/part\.py of SHA-256 000000000000 vs no file of SHA-256 none"
    with pytest.raises(RunError, match=said):
        check_same_code(ranks, {}, {})


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("evaluate.data.samples=3", r"evaluate\.0\.data\.samples: 2 vs 3"),
        ("evaluate=null", r"evaluate: \[perplexity\] vs not set"),
        ("model.offload=disk", r"model\.offload: not set vs disk"),
        ("calibration.keep=disk", r"calibration\.keep: memory vs disk"),
        ("export=[safetensors, hugging_face]", r"export: \[safetensors\] vs \[safetensors, hugging_face\]"),
    ],
)
def test_what_a_run_may_go_on_with_otherwise_is_to_be_the_same_in_all_of_its_processes(plain, own, told):
    """Each would measure its own share of other data, or wait for what another never reads."""
    registry = load_registry()
    first = parse_recipe(plain(), registry=registry)
    ranks = Second((first.plain(), RUN, RUN))
    check_same_asked(ranks, first, Path("run"))
    with pytest.raises(RunError, match=f"rank 1 has another recipe: {told} "):
        check_same_asked(ranks, parse_recipe(plain(), set_=[own], registry=registry), Path("run"))


def test_other_data_are_named_with_their_rank(recipes, tmp_path, monkeypatch):
    def run(rank):
        if rank:
            monkeypatch.setattr("ecoflap.core.pruning.calibration.Calibration.fingerprint", lambda *_: "another")
        return recipes["sums"]

    said = refused(tmp_path, run)
    assert "rank 1 has found another calibration data than rank 0" in said


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="no path here leads each process elsewhere")
def test_another_copy_of_an_evaluators_data_is_named_with_its_rank(plain, data, pico, tmp_path, monkeypatch):
    lines = (pico / "text.jsonl").read_text().splitlines(keepends=True)
    for rank in range(2):  # as two machines have a file under one path
        (tmp_path / f"disk {rank}").mkdir()
        (tmp_path / f"disk {rank}" / "held.jsonl").write_text("".join(lines[rank:]))
    held = data(3, path="/proc/self/cwd/held.jsonl")

    def run(rank):
        monkeypatch.chdir(tmp_path / f"disk {rank}")
        return plain(evaluate=[{"use": "loss", "data": data(3)}, {"use": "perplexity", "data": held}])

    said = refused(tmp_path, run)
    assert "rank 1 has found another copy of the files of evaluate, number 2: perplexity, than rank 0" in said


def test_a_device_by_its_number_is_refused_to_several(plain, pico, tmp_path):
    model = {"source": str(pico / "model"), "device": "cuda:0"}
    said = refused(tmp_path, lambda rank: plain(model=model))
    assert "model.device: cuda:0 names one device, and 2 processes would share it. Say cuda, and each" in said


@pytest.mark.parametrize(("device", "size"), [("cuda:1", 1), ("cuda", 2), ("auto", 2), ("cpu", 2)])
def test_other_devices_are_not(device, size):
    ranks = Ranks()
    ranks.size = size
    plainest = {"version": 1, "sparsity": 0.5, "allocate": "uniform", "prune": "magnitude"}
    recipe = {**plainest, "model": {"source": "somewhere", "device": device}}
    refuse_numbered_device(ranks, parse_recipe(recipe, registry=load_registry()))


def test_a_recipe_that_lies_in_the_folder_is_read_by_all_before_fresh_deletes_it(recipes, tmp_path, monkeypatch):
    folder, read = ecoflap.run(recipes["no data"], folder=tmp_path / "run").folder, pipeline._checked

    def late(*given):
        time.sleep(1.0 if os.environ["RANK"] == "1" else 0.0)
        return read(*given)

    monkeypatch.setattr(pipeline, "_checked", late)
    anew = partial(ecoflap.run, folder / "recipe.yaml", folder=folder, fresh=True)
    assert several(2, lambda ranks: anew(ranks=ranks), tmp_path) == [(0, "")] * 2


def test_processes_on_other_kinds_of_devices_are_named_with_their_rank(plain, tmp_path, monkeypatch):
    """As where torch finds no GPU on one of the machines, and ``auto`` takes the CPU there."""
    monkeypatch.setattr(RunModel, "device", property(lambda self: "cpu" if os.environ["RANK"] == "1" else "cuda"))
    said = refused(tmp_path, lambda rank: plain())
    assert "rank 1 computes on cpu, and rank 0 on cuda (all have to on the same: see that torch finds a GPU" in said


def test_devices_of_one_kind_may_have_other_numbers():
    check_same_device(Second("cuda:0"), "cuda:1")


def test_more_processes_than_batches_are_refused(plain, data, tmp_path):
    said = refused(tmp_path, lambda rank: plain(calibration=data(4, batch_size=2)), size=3)
    assert "there are 3 processes and 2 batches of calibration data, of which each takes one at least" in said
    assert "there are 3 processes and 1 batches of data to score by" in said


def test_batches_of_what_is_done_need_not_suffice(plain, data, tmp_path):
    """A planned run is scored no more, and of one that is pruned nothing is left to share."""
    folder = tmp_path / "run"
    recipe = plain(calibration=data(4, batch_size=2), score={"use": "zeroth_order", "samples": 2})
    ecoflap.run(recipe, folder=folder)
    before = {name: (folder / name).read_bytes() for name in ("plan.json", "masks.safetensors")}
    shutil.rmtree(folder / "model")
    for size in (2, 3):  # by two it is pruned anew, and by three nothing is done
        again = several(size, lambda ranks: ecoflap.run(recipe, folder=folder, ranks=ranks), tmp_path)
        assert again == [(0, "")] * size
    assert {name: (folder / name).read_bytes() for name in before} == before
