"""Where a run's time went: told for each stage, by file and by function, and readable by the standard library."""

import json
from pstats import Stats

import pytest

from ecoflap.core.cli.profiling import StageProfiles
from ecoflap.core.contracts.events import RunFailed, RunStarted, StageFinished, StageStarted


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


def test_a_run_without_the_flag_writes_nothing_of_it(plain, ecoflap_command, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(score=None, allocate="uniform")))
    ecoflap_command("run", tmp_path / "recipe.yaml", "--folder", tmp_path / "run")
    assert not list((tmp_path / "run").glob("profile*"))


def spend(rounds):
    return sum(number**2 for number in range(rounds))


@pytest.mark.parametrize("end", [StageFinished("score", 0.0), RunFailed("it broke")])
def test_a_stage_that_fails_is_told_of_too(end, tmp_path):
    profiles = StageProfiles()
    profiles(RunStarted(tmp_path, ("score",)))
    profiles(StageStarted("score"))
    spend(200_000)
    profiles(end)
    told = (tmp_path / "profile.txt").read_text()
    assert told.startswith("score: " if isinstance(end, StageFinished) else "the stage that failed: ")
    [file] = (tmp_path / "profile").iterdir()
    assert any(name == "spend" for _, _, name in Stats(str(file)).stats)
