"""Runs that are cut off anywhere and go on: what lasts is equal bit by bit to an unbroken run's."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import fork, in_a_fork
from sealed_by_hand import write_lines, write_sealed

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.events import LayerPruned, Progress, StageStarted
from ecoflap.core.errors import RunError
from ecoflap.core.record.folder import RunFolder
from ecoflap.core.record.report import read_report
from ecoflap.core.verifying.verify import verify

POINTS = [
    "event:RunStarted:1",
    "event:StageFinished load:1",
    "rename:fingerprints.json:after",
    "event:Progress score:2",
    "event:Progress score:9",
    "event:StageFinished score:1",
    "rename:plan.json:before",
    "rename:plan.json:after",
    "event:LayerPruned:3",
    "event:Progress prune:1",
    "event:LayerPruned:10",
    "rename:blocks/001.safetensors:before",
    "event:Progress prune:3",
    "rename:masks.safetensors:before",
    "rename:masks.safetensors:after",
    "rename:run/model:before",
    "rename:run/model:after",
    "event:StageFinished evaluate pruned:1",
    "rename:exports/safetensors:before",
    "rename:exports/safetensors:after",
    "rename:exports/hugging_face:after",
    "rename:exports/hugging_face.json:before",
    "rename:report.json:before",
]
"""Where a run is killed that is not finished then."""
FINISHED = ["rename:report.json:after", "event:RunFinished:1", "rename:report.html:before", "rename:report.html:after"]


EXPORTED = ["safetensors", "hugging_face"]


@pytest.fixture
def recipe(plain):
    return plain(export=EXPORTED)


@pytest.fixture(scope="module")
def unbroken(plain, tmp_path_factory, lasting):
    return lasting(ecoflap.run(plain(export=EXPORTED), folder=tmp_path_factory.mktemp("unbroken") / "run").folder)


EVERY_THIRD = [pytest.param(point, marks=pytest.mark.slow if number % 3 else ()) for number, point in enumerate(POINTS)]


@pytest.mark.parametrize("point", EVERY_THIRD)
def test_a_killed_run_goes_on_and_ends_the_same(recipe, unbroken, lasting, killer, tmp_path, point):
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    assert not (folder / "report.json").exists()
    assert verify(folder).unfinished == [folder]  # what it has not come to is not missed
    run = ecoflap.run(recipe, folder=folder)
    assert lasting(folder) == unbroken
    assert not (folder / "blocks").exists()
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert list(run.report.bytes) == ["model", "safetensors", "hugging_face"]


@pytest.mark.parametrize(
    "point", ["event:Progress score:3", pytest.param("rename:plan.json:before", marks=pytest.mark.slow)]
)
def test_curves_last_like_any_score(plain, lasting, killer, tmp_path, point):
    recipe = plain(score={"use": "sensitivity", "samples": 2})
    whole = lasting(ecoflap.run(recipe, folder=tmp_path / "unbroken").folder)
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    found = (folder / "scores.jsonl").read_bytes()
    assert found.count(b'"rises"') == {"event:Progress score:2": 1, "event:Progress score:3": 2}.get(point, 3)
    ecoflap.run(recipe, folder=folder)
    assert lasting(folder) == whole
    assert whole["scores.jsonl"].startswith(found)


@pytest.mark.parametrize("point", FINISHED)
def test_a_run_that_is_killed_at_its_page_is_finished(recipe, unbroken, lasting, killer, tmp_path, point):
    folder = tmp_path / "run"
    assert in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    assert lasting(folder) == unbroken
    report = read_report(folder / "report.json")
    again = ecoflap.run(recipe, folder=folder)
    assert again.report.measures == report.measures
    assert [stage.stage for stage in again.report.stages] == [stage.stage for stage in report.stages]
    assert (folder / "report.html").is_file()
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_a_run_that_is_killed_again_and_again_gets_there(recipe, unbroken, lasting, killer, tmp_path):
    folder, kills = tmp_path / "run", 0
    while in_a_fork(killer("event:Progress:4"), lambda: ecoflap.run(recipe, folder=folder)):
        kills += 1
        assert kills < 30
    assert kills > 5
    assert lasting(folder) == unbroken


def test_what_is_finished_is_not_done_again(recipe, killer, heard_by, tmp_path):
    folder = tmp_path / "run"
    in_a_fork(killer("event:Progress score:9"), lambda: ecoflap.run(recipe, folder=folder))
    scores = (folder / "scores.jsonl").read_bytes()
    assert scores.count(b"\n") == 1 + 8  # the header, and the first event told that none was there
    assert in_a_fork(killer("event:LayerPruned:15"), lambda: ecoflap.run(recipe, folder=folder)) == -signal.SIGKILL
    assert (folder / "scores.jsonl").read_bytes().startswith(scores)
    assert sorted(path.name for path in (folder / "blocks").iterdir()) == ["000.safetensors", "001.safetensors"]
    heard = []
    ecoflap.run(recipe, folder=folder, registry=heard_by(heard.append))
    stages = [event.stage for event in heard if isinstance(event, StageStarted)]
    assert stages == ["load", "prune", "save", "evaluate pruned", "export safetensors", "export hugging_face"]
    assert {event.name.split(".")[2] for event in heard if isinstance(event, LayerPruned)} == {"2"}
    assert [event.done for event in heard if isinstance(event, Progress)] == [1, 2, 3]


def test_the_time_of_killed_processes_counts_from_their_last_sign_of_life(recipe, killer, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr("ecoflap.core.record.clock.Clock.EVERY", 0.0)
    in_a_fork(killer("event:StageFinished score:1"), lambda: ecoflap.run(recipe, folder=folder))
    lines = [json.loads(line) for line in (folder / "stages.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["stage"] == "score"]) == 23
    report = ecoflap.run(recipe, folder=folder).report
    told = {stage.stage: stage.seconds for stage in report.stages}
    before = sum(line["seconds"] for line in lines if line["stage"] == "score")
    assert before <= told["score"] < before + 0.1  # the scores were complete, and only read again


def test_warnings_of_a_killed_process_are_in_the_report(plain, killer, tmp_path):
    recipe = plain(score={"use": "zeroth_order", "samples": 99}, export=None)
    in_a_fork(killer("event:StageFinished score:1"), lambda: ecoflap.run(recipe, folder=tmp_path / "run"))
    assert len(ecoflap.run(recipe, folder=tmp_path / "run").report.warnings) == 1


@pytest.mark.slow
def test_processes_of_the_command_itself(recipe, unbroken, lasting, killer, command_code, tmp_path):
    """Killed, terminated, killed; then finished: each a process of its own, started in another folder."""
    file, elsewhere = tmp_path / "recipe.json.yaml", tmp_path / "elsewhere"
    file.write_text(json.dumps(recipe))
    elsewhere.mkdir()

    def command(environment):
        return subprocess.run(
            [sys.executable, "-c", command_code, "run", file, "--folder", "../run"],
            cwd=elsewhere, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    assert command(killer("event:Progress score:5")).returncode == -signal.SIGKILL
    assert command(killer("rename:run/model:before")).returncode == -signal.SIGKILL
    done = command({})
    assert done.returncode == 0, done.stderr
    assert lasting(tmp_path / "run") == unbroken


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_how_to_go_on(recipe, unbroken, lasting, ecoflap_command, tmp_path, number, code):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "signals.py").write_text(
        "import os\nfrom ecoflap import hookimpl\n@hookimpl\ndef ecoflap_on_event(event):\n"
        f"    if getattr(event, 'done', 0) == 7:\n        os.kill(os.getpid(), {int(number)})\n"
    )
    (tmp_path / "signals.yaml").write_text("version: 1\nplugins: {signals: signals}\n")
    arguments = ["run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run"]

    def stopped():
        # a shell has what it runs in the background ignore the one of Ctrl-C, these tests included
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ended, _, said = ecoflap_command(*arguments, "--registry", tmp_path / "signals.yaml")
        (tmp_path / "ended.json").write_text(json.dumps([ended, said, signal.getsignal(signal.SIGTERM)]))

    assert in_a_fork({"PYTHONPATH": str(tmp_path)}, stopped) == 0
    ended, said, handler = json.loads((tmp_path / "ended.json").read_text())
    assert ended == code
    assert said.endswith("\necoflap: stopped; the same command goes on from here\n")
    assert handler == signal.SIG_DFL
    assert '"RunFailed"' in (tmp_path / "run" / "log.jsonl").read_text()
    assert ecoflap_command(*arguments)[0] == 0
    assert lasting(tmp_path / "run") == unbroken


def test_two_processes_in_one_folder(recipe, tmp_path):
    ready, go = os.pipe()

    def hold():
        from ecoflap.core.record.open_run import open_run

        with open_run(tmp_path / "run", fresh=False):
            os.write(go, b"!")
            time.sleep(60)

    child = fork()
    if child == 0:
        try:
            hold()
        finally:
            os._exit(1)
    os.read(ready, 1)
    try:
        with pytest.raises(RunError, match=r"another process is running in .*run\. Wait for it, or name"):
            ecoflap.run(recipe, folder=tmp_path / "run")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    ecoflap.run(recipe, folder=tmp_path / "run")


@pytest.mark.parametrize(
    "what",
    [
        *("scores.jsonl", "001.safetensors", "model", "report.json"),
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("recipe.yaml", "plan.json", "masks", "exports")),
    ],
)
def test_a_full_disk_loses_nothing(recipe, unbroken, lasting, tmp_path, monkeypatch, what):
    folder, sync = tmp_path / "run", os.fsync

    def full(descriptor):
        if what in os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunError, match=rf"{what}.* could not be written: the disk is full .*Make room, then run the same"
    ):
        ecoflap.run(recipe, folder=folder)
    finished = lasting(folder)
    monkeypatch.setattr(os, "fsync", sync)
    ecoflap.run(recipe, folder=folder)
    assert lasting(folder) == unbroken
    assert {name: data for name, data in unbroken.items() if name in finished and name != "scores.jsonl"} == {
        name: data for name, data in finished.items() if name != "scores.jsonl"
    }


@pytest.mark.parametrize(("writes", "what"), [("save", "run/model"), ("save_surroundings", r"run/exports/safetensors")])
def test_a_disk_that_fills_while_an_adapter_writes_is_no_mistake_of_the_adapter(
    recipe, unbroken, lasting, tmp_path, monkeypatch, writes, what
):
    """As Python's own files have it, without a path."""

    def full(self, model, folder):
        (folder / "tokenizer.json").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LlamaAdapter, writes, full)
        with pytest.raises(RunError, match=rf"{what} could not be written: the disk is full .* free\)\. Make room"):
            ecoflap.run(recipe, folder=folder)
    ecoflap.run(recipe, folder=folder)
    assert lasting(folder) == unbroken


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_the_command_with_2(recipe, unbroken, lasting, command_code, tmp_path):
    """As large files are refused by the system itself, in a process of its own."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
    command = [sys.executable, "-c", "", "run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(before):
        command[2] = f"{before}{command_code}"
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    ended = run(code)
    assert ended.returncode == 2, ended.stderr
    assert "could not be written: the file would be larger than the system allows (see ulimit -f)" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len((tmp_path / "run" / "scores.jsonl").read_text().splitlines()) == 22
    assert run("").returncode == 0
    assert lasting(tmp_path / "run") == unbroken


def test_another_recipe_is_refused_with_what_differs(plain, copied_run, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError) as caught:
        ecoflap.run(plain(sparsity=0.6, prune={"use": "wanda", "compare": "layer"}), folder=tmp_path / "run")
    assert "was begun with another recipe: sparsity: 0.5 vs 0.6; prune.compare: row vs layer (before vs" in str(
        caught.value
    )
    told = f"with --folder, where reuse: [{tmp_path / 'run'}] takes over what would be the same, or begin this one anew"
    assert told in str(caught.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = ecoflap.run(plain(sparsity=0.6), folder=tmp_path / "run", fresh=True)
    assert run.report.sparsity == pytest.approx(0.6)


@pytest.mark.parametrize("key", ["model", "calibration", "reuse"])
def test_a_run_is_not_begun_anew_over_what_it_reads(plain, pico, copied_run, key):
    """It would be deleted, and missed afterwards."""
    folder = copied_run.folder
    recipe = plain()
    if key == "model":
        recipe["model"] = {"source": str(folder / "model")}
        inside = folder / "model"
    elif key == "reuse":
        inside = shutil.copytree(folder, folder / "old")
        recipe["reuse"] = [str(inside)]
    else:
        given = Path(recipe["calibration"]["path"])
        inside = shutil.copy(given, folder / f"own{given.suffix}")
        recipe["calibration"]["path"] = str(inside)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=rf"is to be begun anew.*{key}: {inside}.*Name another folder with --folder"):
        ecoflap.run(recipe, folder=folder, fresh=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("cut_off", [False, True])
def test_another_model_or_other_data_are_refused(recipe, pico, killer, tmp_path, cut_off):
    import shutil

    model, text, folder = tmp_path / "model", tmp_path / "text.jsonl", tmp_path / "run"
    shutil.copytree(pico / "model", model)
    shutil.copy(pico / "text.jsonl", text)
    recipe = {**recipe, "model": str(model), "calibration": {**recipe["calibration"], "path": str(text)}}
    point = "event:Progress score:5" if cut_off else "event:never:1"
    in_a_fork(killer(point), lambda: ecoflap.run(recipe, folder=folder))
    text.write_text(text.read_text().replace("word3", "word4"))
    with pytest.raises(RunError, match="was begun with another calibration data than is there now"):
        ecoflap.run(recipe, folder=folder)
    shutil.copy(pico / "text.jsonl", text)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"was begun with another model \(model\.safetensors\) than is there now"):
        ecoflap.run(recipe, folder=folder)
    shutil.copy(pico / "model" / "model.safetensors", model)
    ecoflap.run(recipe, folder=folder)


def test_a_folder_of_an_earlier_version_is_known_by_its_data(plain, copied_run):
    """A parameter of calibration data that its recipe lacks is of a later version: the windows themselves decide."""
    folder, before = copied_run.folder, copied_run.plan
    written = folder / "recipe.yaml"
    assert written.read_text().count("bos: auto") == 2  # of what calibrates and of what evaluates
    earlier = re.sub(r",? *bos: auto", "", written.read_text().partition("\n# seal: ")[0])
    write_sealed(written, earlier)
    again = ecoflap.run(plain(), folder=folder)
    assert again.plan == before
    assert written.read_text().count("bos: auto") == 2
    write_sealed(written, earlier)
    calibration = {**plain()["calibration"], "bos": True}
    with pytest.raises(RunError, match="was begun with another calibration data than is there now"):
        ecoflap.run(plain(calibration=calibration), folder=folder)
    write_sealed(written, earlier.replace("sequence_length: ", "sequence_length: 1"))
    with pytest.raises(RunError, match=r"another recipe: calibration\.sequence_length: 1\d+ vs \d+ \(before vs now\)"):
        ecoflap.run(plain(), folder=folder)


def test_a_changed_export_or_evaluation_reuses_what_precedes_it(plain, pico, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    first = ecoflap.run(plain(), folder=folder)
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in CHANGING]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}
    loaded, load = [], LlamaAdapter.load

    def counted(self, source, dtype, device):
        loaded.append((source.name, device))
        return load(self, source, dtype, device)

    monkeypatch.setattr(LlamaAdapter, "load", counted)
    second = ecoflap.run(plain(export=["safetensors", "hugging_face"]), folder=folder)
    written = folder / "exports" / ".hugging_face.partial"  # which its exporter reads again
    assert loaded == [(str(pico / "model"), "meta"), (str(folder / "model"), "cpu"), (str(written), "cpu")]
    assert (folder / "exports" / "hugging_face" / "model.safetensors").is_file()
    evaluate = {**plain()["evaluate"], "data": {**plain()["evaluate"]["data"], "samples": 3}}
    third = ecoflap.run(plain(evaluate=evaluate), folder=folder)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept} == before
    assert list(third.report.measures.pruned) == ["perplexity"]
    assert third.report.measures.dense["perplexity"].n == 3 * 15
    assert list(third.report.bytes) == ["model", "safetensors"]
    assert second.report.measures == first.report.measures
    for run in (second, third):
        assert all(torch.equal(value, first.model.state_dict()[name]) for name, value in run.model.state_dict().items())


CHANGING = {
    "recipe.yaml", "report.json", "report.html", "log.jsonl", "stages.jsonl", "evaluations.jsonl", "warnings.jsonl",
}  # fmt: skip


def test_an_evaluation_whose_text_changed_is_done_again(plain, pico, tmp_path):
    text = tmp_path / "held-out.txt"
    text.write_text("word1 word2 " * 50)
    evaluate = {"use": "perplexity", "data": {"use": "text", "path": str(text), "samples": 2, "sequence_length": 16}}
    first = ecoflap.run(plain(evaluate=evaluate), folder=tmp_path / "run").report.measures
    text.write_text("word3 word4 word5 " * 50)
    second = ecoflap.run(plain(evaluate=evaluate), folder=tmp_path / "run").report.measures
    assert first.dense["perplexity"].value != second.dense["perplexity"].value
    assert first.pruned["perplexity"].value != second.pruned["perplexity"].value


def test_an_export_that_lost_a_file_is_written_again(plain, copied_run):
    folder = copied_run.folder
    file = folder / "exports" / "safetensors" / "model.packed.safetensors"
    before = file.read_bytes()
    file.unlink()
    ecoflap.run(plain(), folder=folder)
    assert file.read_bytes() == before


def test_reuse_takes_over_scores_and_the_dense_evaluation_where_equal(plain, plain_run, tmp_path):
    first = plain_run
    reuse = [str(first.folder)]

    def stages(run):
        return [stage.stage for stage in run.report.stages]

    def taken_over(run):
        return RunFolder(run.folder).taken_over()

    other = ecoflap.run(plain(prune="magnitude", sparsity=0.7, reuse=reuse), folder=tmp_path / "other")
    assert (other.folder / "scores.jsonl").read_bytes() == (first.folder / "scores.jsonl").read_bytes()
    assert other.report.measures.dense == first.report.measures.dense
    assert "evaluate dense" not in stages(other)
    assert (taken_over(first), taken_over(other)) == ([], ["dense evaluation", "scores"])
    seeded = ecoflap.run(plain(seed=1, reuse=reuse), folder=tmp_path / "seeded")
    assert (seeded.folder / "scores.jsonl").read_bytes() != (first.folder / "scores.jsonl").read_bytes()
    assert "evaluate dense" not in stages(seeded)
    assert taken_over(seeded) == ["dense evaluation"]
    calibration = {**plain()["calibration"], "seed": 3}
    data = ecoflap.run(plain(calibration=calibration, reuse=reuse), folder=tmp_path / "data")
    assert (data.folder / "scores.jsonl").read_bytes() != (first.folder / "scores.jsonl").read_bytes()
    fresh = ecoflap.run(plain(evaluate={**plain()["evaluate"], "data": calibration_of(calibration)}, reuse=reuse),
                        folder=tmp_path / "fresh")  # fmt: skip
    assert "evaluate dense" in stages(fresh)
    assert taken_over(fresh) == ["scores"]
    more = ecoflap.run(plain(include=["lm_head"], reuse=reuse), folder=tmp_path / "more")
    assert taken_over(more) == ["dense evaluation"]  # a scorer may look at all that is pruned together


def test_reuse_takes_over_scores_by_data_of_the_scorers_own_whatever_pruners_look_at(plain, tmp_path):
    score = {**plain()["score"], "calibration": {**plain()["calibration"], "seed": 5}}
    first = ecoflap.run(plain(score=score), folder=tmp_path / "first")
    calibration = {**plain()["calibration"], "samples": 3}
    more = plain(score=score, calibration=calibration, reuse=[str(first.folder)])
    other = ecoflap.run(more, folder=tmp_path / "other")
    assert "scores" in RunFolder(other.folder).taken_over()
    alone = ecoflap.run({**more, "reuse": []}, folder=tmp_path / "alone")
    assert (other.folder / "scores.jsonl").read_bytes() == (alone.folder / "scores.jsonl").read_bytes()
    assert other.report.measures.pruned == alone.report.measures.pruned
    assert other.report.measures.pruned != first.report.measures.pruned
    data = plain(score={**score, "calibration": {**score["calibration"], "seed": 6}}, reuse=[str(first.folder)])
    assert "scores" not in RunFolder(ecoflap.run(data, folder=tmp_path / "data").folder).taken_over()


def calibration_of(data):
    return {key: value for key, value in data.items() if key != "batch_size"}


def test_reuse_of_what_is_no_run_is_refused_with_all_else_that_is_wrong(plain, tmp_path):
    recipe = plain(reuse=[str(tmp_path / "none"), str(tmp_path / "run")], towers={"vision": "keep"})
    with pytest.raises(ecoflap.EcoflapError) as caught:
        ecoflap.run(recipe, folder=tmp_path / "run")
    assert len(caught.value.problems) == 2
    assert f"reuse: {tmp_path / 'none'} is no run folder: it has no recipe.yaml." in str(caught.value)


def test_reuse_of_a_folder_with_a_recipe_and_no_run_is_refused(plain, tmp_path):
    (tmp_path / "recipe.yaml").write_text("sparsity: 0.5")
    with pytest.raises(ecoflap.EcoflapError, match=rf"reuse: {tmp_path} is no run folder: no run was begun there"):
        ecoflap.run(plain(reuse=[str(tmp_path)]), folder=tmp_path / "run")


def test_a_block_file_that_was_damaged_is_named(recipe, killer, tmp_path):
    folder = tmp_path / "run"
    in_a_fork(killer("event:Progress prune:2"), lambda: ecoflap.run(recipe, folder=folder))
    (folder / "blocks" / "000.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        ecoflap.EcoflapError,
        match=r"blocks/000\.safetensors is truncated, damaged or not a safetensors .*--fresh",
    ):
        ecoflap.run(recipe, folder=folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "plan.json",
            '{"version": 1, "layers": {"a": {}}, "groups": {}, "scores": ""}',
            r"plan\.json: layers\.a\.size: Field required",
        ),
        ("scores.jsonl", '{"version": 1, "unit": "row"}\n', r"scores\.jsonl: not a file of scores"),
        ("stages.jsonl", '{"stage": "load", "seconds": 1.0}\n', r"stages\.jsonl:1: this line has no peak_memory"),
        ("warnings.jsonl", '{"warn": 1}\n', r"warnings\.jsonl:1: this line has no warning"),
        ("evaluations.jsonl", '{"stage": "dense"}\n', r"evaluations\.jsonl:1: this line has no measures"),
    ],
)
def test_what_was_damaged_in_a_run_folder_is_told_with_its_file(name, content, told, plain, heard_by, tmp_path):
    folder = tmp_path / "run"
    if name == "scores.jsonl":  # read while there is no plan
        stop = heard_by(
            lambda event: (_ for _ in ()).throw(KeyboardInterrupt) if str(event).count("'allocate'") else None
        )
        with pytest.raises(KeyboardInterrupt):
            ecoflap.run(plain(), folder=folder, registry=stop)
    else:
        ecoflap.run(plain(), folder=folder)
        (folder / "report.json").unlink()
    if name == "plan.json":
        write_sealed(folder / name, content)
    else:
        write_lines(folder / name, [json.loads(content)])
    with pytest.raises(RunError, match=told):
        ecoflap.run(plain(), folder=folder)
