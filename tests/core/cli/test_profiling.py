"""Where a run's time went: told for each stage, by file and by function, and readable by the standard library."""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from pstats import Stats

import pluggy
import pytest
import torch

from ecoflap.core.cli import profiling
from ecoflap.core.cli.profiling import StageProfiles
from ecoflap.core.contracts.events import RunFailed, RunFinished, RunStarted, StageFinished, StageStarted

GAPS = ("before the first stage", "between stages", "after the last stage")


def test_a_run_writes_where_its_time_went(plain, ecoflap_command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(score=None, allocate="uniform")))
    run = ("run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run")
    code, _, err = ecoflap_command(*run, "--profile")
    assert code == 0, err
    told = (tmp_path / "run" / "profile.txt").read_text()
    of_prune = told[told.index("\nprune: ") :].partition("\nsave: ")[0]
    assert "ecoflap/plugins/pruners/wanda.py __call__" in of_prune or "ecoflap/core/pruning/prune_blocks.py" in of_prune
    for stage in ("load", "evaluate dense", "prune", "save", "evaluate pruned", "export safetensors"):
        assert f"{stage}: " in told
    profiles = sorted((tmp_path / "run" / "profile").iterdir())
    [pruning] = [file for file in profiles if file.name.endswith("-prune.prof")]
    names = {place[2] for place in Stats(str(pruning)).stats}
    assert "pruned_layer" in names
    code, out, err = ecoflap_command("verify", tmp_path / "run")
    assert code == 0, out + err
    assert "not ours" not in out
    before, between, after = (float(told.partition(f"{what}: ")[2].split()[0]) for what in GAPS)
    assert before > 0
    assert after >= 0
    assert between >= 0


def test_a_file_is_told_by_its_place_in_ecoflap_or_by_its_library():
    """Also where an environment lies in the checkout, so that one folder holds both."""
    for module, where in ((torch, "torch"), (pluggy, "pluggy"), (json, "Python")):
        assert profiling._home_of(str(module.__file__), "f") == where
    for module in (
        "ecoflap",
        "ecoflap.core.errors",
        "ecoflap.plugins.pruners.wanda",
        "ecoflap.exporters.onnx.exporter",
    ):
        path = module.replace(".", "/") + ("/__init__.py" if module == "ecoflap" else ".py")
        assert profiling._home_of(str(find_spec(module).origin), "f") == path
    assert profiling._home_of("~", "<built-in method torch._C._nn.linear>") == "torch, compiled"


def test_who_goes_on_adds_to_what_is_there(plain, ecoflap_command, tmp_path):
    """As after a run was killed, or with one more export."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(score=None, allocate="uniform", export=None)))
    run = ("run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run", "--profile")
    assert ecoflap_command(*run)[0] == 0
    page, folder = tmp_path / "run" / "profile.txt", tmp_path / "run" / "profile"
    told, profiles = page.read_text(), {file.name: file.read_bytes() for file in folder.iterdir()}
    assert ecoflap_command(*run, "--set", "export=safetensors")[0] == 0
    assert page.read_text().startswith(told)
    added = page.read_text().removeprefix(told)
    assert "\nexport safetensors: " in added
    assert "\nprune: " not in added
    assert {name: (folder / name).read_bytes() for name in profiles} == profiles
    numbers = sorted(int(file.name[:2]) for file in folder.iterdir())
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > len(profiles)


def test_time_outside_of_stages_is_told(tmp_path, monkeypatch):
    now = [10.0]
    monkeypatch.setattr("ecoflap.core.cli.profiling.perf_counter", lambda: now[0])
    profiles = StageProfiles(began=7.0)
    for event, seconds in (
        (RunStarted(tmp_path, ("score", "prune")), 1.0),
        (StageStarted("score"), 2.0),
        (StageFinished("score", 2.0), 0.25),
        (StageStarted("prune"), 3.0),
        (StageFinished("prune", 3.0), 0.5),
        (RunFinished(tmp_path, None), 0.0),
    ):
        profiles(event)
        now[0] += seconds
    told = (tmp_path / "profile.txt").read_text().splitlines()
    stages = ("before", "score: ", "prune: ", "between", "after")
    assert [line for line in told if line.startswith(stages)] == [
        "before the first stage: 4.00 s",
        "score: 2.00 s",
        "prune: 3.00 s",
        "between stages: 0.25 s",
        "after the last stage: 0.50 s",
    ]


def test_a_process_knows_when_it_began():
    code = "import time; from ecoflap.core.cli.profiling import process_began\n"
    code += "print(time.perf_counter() - process_began())"
    started = time.perf_counter()
    told = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0 <= told <= time.perf_counter() - started + 0.02  # the system counts in hundredths
    if Path("/proc/self/stat").is_file():
        assert told > 0.05  # in which the import was


def test_a_run_without_the_flag_writes_nothing_of_it(plain, ecoflap_command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(score=None, allocate="uniform")))
    ecoflap_command("run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run")
    assert not list((tmp_path / "run").glob("profile*"))


def spend(rounds):
    return sum(number**2 for number in range(rounds))


@pytest.mark.parametrize("end", [StageFinished("score", 0.0), RunFailed("it broke")])
def test_a_stage_that_fails_is_told_of_too(end, tmp_path):
    profiles = StageProfiles(began=0.0)
    profiles(RunStarted(tmp_path, ("score",)))
    profiles(StageStarted("score"))
    spend(200_000)
    profiles(end)
    told = (tmp_path / "profile.txt").read_text()
    assert f"\n{'score' if isinstance(end, StageFinished) else 'the stage that failed'}: " in told
    [file] = (tmp_path / "profile").iterdir()
    assert any(name == "spend" for _, _, name in Stats(str(file)).stats)
