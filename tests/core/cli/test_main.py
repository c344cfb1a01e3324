"""The command as a user meets it: what it prints, what it refuses, and with which exit code."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save

CHECK_LAZY = """
import sys
sys.argv = ["ecoflap", {argument!r}]
from ecoflap.core.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
assert not {{"torch", "transformers", "pydantic"}} & set(sys.modules), sorted(sys.modules)
"""


@pytest.fixture
def recipe_file(plain, tmp_path):
    def recipe_file(**keys):
        file = tmp_path / "recipe.yaml"
        file.write_text(json.dumps(plain(**keys)))
        return file

    return recipe_file


@pytest.fixture
def finished(recipe_file, ecoflap_command, tmp_path):
    code, out, err = ecoflap_command("run", recipe_file(), "--folder", tmp_path / "finished")
    assert code == 0, err
    return tmp_path / "finished", out, err


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(argument):
    subprocess.run([sys.executable, "-c", CHECK_LAZY.format(argument=argument)], check=True, capture_output=True)


def test_help_names_every_command(ecoflap_command):
    code, out, _ = ecoflap_command("--help")
    assert code == 0
    assert all(command in out for command in ("run", "sweep", "plan", "list", "inspect", "compare", "--version"))


def test_a_run_says_what_it_came_to(finished):
    folder, out, err = finished
    assert "zeroth_order → ecoflap → wanda: 50.00 % of 23,040 weights pruned" in out
    assert f"report: {folder / 'report.html'}" in out
    assert "perplexity" in out
    assert "±" in out
    assert err.startswith(f"run folder {folder}\n")
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "x", "--sparsity", "0.5"],
        ["prune", "x"],
        ["compare"],
        ["sweep"],
        ["sweep", "x", "--seeds"],
        ["plan", "quickstart", "extra"],
    ],
)  # fmt: skip
def test_wrong_usage_is_2(ecoflap_command, arguments):
    code, _, err = ecoflap_command(*arguments)
    assert code == 2
    assert "Usage: ecoflap" in err or "Error" in err


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            "sparsity: 1.7",
            "sparsity: should be a number from 0 to below 1, the share of weights to prune, or a pattern",
        ),
        ("sparsity: -0.2", "sparsity: should be a number from 0 to below 1"),
        ("sparsity: 50%", "Did you mean 0.5?"),
        ("sparsity: 0.5\nsparsity: 0.6", "bad.yaml:5:1: sparsity: written twice; first at "),
        ("sparsity: 0.3\npattern: 2:4", "pattern: 2:4 prunes 0.5, and sparsity is 0.3. Remove one."),
        ("sparsity: 0.5\nsparsty: 1", "sparsty: unknown key 'sparsty'. Did you mean 'sparsity'?"),
        ("sparsity: 0.5\nseed: one", "seed: "),
        ("sparsity: 0.5\ntowers: {visoin: keep}", "towers.visoin: this model has no such tower."),
        ("sparsity: 0.5\ntowers: {language: keep}", "every tower of this model is kept, so there is nothing to prune"),
        ("sparsity: 0.5\ncalibration: {use: text, path: nowhere.txt}", "nowhere.txt does not exist."),
        (
            "sparsity: 0.5\ncalibration: {use: text, sequence_length: 999}",
            "sequence_length is 999; this model reads 128",
        ),
        ("sparsity: 0.5\nallocate: {use: from_file, path: nowhere}", "nowhere: no such file; path is a plan.json"),
        ("sparsity: 0.5\nreuse: nowhere", "reuse: {tmp_path}/nowhere is no run folder"),
        ("sparsity: 3:7", "pattern 3:7: the inputs of 21 layers cannot be divided into runs of 7: "),
        ("sparsity: 3:7", "An m of 2, 4, 8 or 16 divides all. Or give their tower a sparsity of its own under towers:"),
        ("sparsity: 0.5\nprune: wonda", "bad.yaml:4:8: prune: no pruner named 'wonda'. Did you mean 'wanda'?"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_bad_recipes_are_refused_before_a_weight_is_read(pico, ecoflap_command, tmp_path, command, written, told):
    prune = "" if "prune:" in written else "\nprune: magnitude"
    (tmp_path / "bad.yaml").write_text(f"version: 1\nmodel: {weightless(pico, tmp_path)}{prune}\n{written}\n")
    folder = ["--folder", tmp_path / "run"] if command == "run" else []
    code, out, err = ecoflap_command(command, tmp_path / "bad.yaml", *folder)
    assert code == 2, out
    assert told.format(tmp_path=tmp_path) in err
    assert not (tmp_path / "run").exists()


def weightless(pico, folder):
    """The model with a file that has none of its weights: whatever reads them fails otherwise."""
    target = folder / "weightless"
    target.mkdir()
    for file in (pico / "model").iterdir():
        (target / file.name).write_bytes(save({}) if file.suffix == ".safetensors" else file.read_bytes())
    return target


def test_all_problems_with_a_model_are_told_at_once(pico, ecoflap_command, tmp_path):
    (tmp_path / "bad.yaml").write_text(
        f"version: 1\nmodel: {pico / 'model'}\nsparsity: 0.5\nprune: wanda\ntowers: {{vision: keep}}\n"
        "calibration: {use: text, path: nowhere.txt}\nreuse: nowhere\nallocate: {use: from_file, path: nowhere}\n"
    )
    code, _, err = ecoflap_command("plan", tmp_path / "bad.yaml")
    assert code == 2
    assert err.startswith("ecoflap: 4 problems\n")


def test_an_unquoted_pattern_is_a_pattern(recipe_file, ecoflap_command, tmp_path):
    file = recipe_file(sparsity="PATTERN", score=None)
    file.write_text(file.read_text().replace('"PATTERN"', "2:4"))
    code, _, err = ecoflap_command("run", file, "--folder", tmp_path / "run")
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["sparsity"] == 0.5


def test_a_folder_without_weights_is_told(pico, recipe_file, ecoflap_command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_bytes((pico / "model" / "config.json").read_bytes())
    code, _, err = ecoflap_command("plan", recipe_file(model=str(tmp_path / "empty")))
    assert code == 2
    assert f"no weights in {tmp_path / 'empty'}: expected *.safetensors" in err


def test_weights_that_are_rubbish_are_told(pico, recipe_file, ecoflap_command, tmp_path):
    weights = weightless(pico, tmp_path) / "model.safetensors"
    weights.write_bytes(b"\0" * 64)
    for command in (("plan",), ("run", "--folder", tmp_path / "r")):
        code, _, err = ecoflap_command(command[0], recipe_file(model=str(weights.parent)), *command[1:])
        assert code == 2
        assert f"{weights} is cut off, or no safetensors file" in err


def test_a_text_shorter_than_a_window_is_told_before_anything_is_scored(recipe_file, ecoflap_command, plain, tmp_path):
    (tmp_path / "short.txt").write_text("word1 word2 word3")
    short = {"use": "text", "path": str(tmp_path / "short.txt"), "sequence_length": 16}
    for keys in ({"calibration": short}, {"evaluate": {"use": "perplexity", "data": short}}):
        code, _, err = ecoflap_command("run", recipe_file(**keys), "--folder", tmp_path / next(iter(keys)))
        assert code == 2
        assert "text: all of it is 3 tokens, and one window needs 16. Give more text, or set sequence_length: 3" in err
        assert not (tmp_path / next(iter(keys)) / "scores.jsonl").exists()


@pytest.mark.parametrize("obstacle", ["file", "below a file", "strangers", "a recipe of the user's own"])
def test_a_folder_that_is_no_run_folder_is_refused_and_left_alone(recipe_file, ecoflap_command, tmp_path, obstacle):
    there = tmp_path / "there"
    target = there / "run" if obstacle == "below a file" else there
    if obstacle in ("file", "below a file"):
        there.write_text("mine")
    else:
        there.mkdir()
        (there / ("notes.txt" if obstacle == "strangers" else "recipe.yaml")).write_text("mine")
    for fresh in ([], ["--fresh"]):
        code, _, err = ecoflap_command("run", recipe_file(), "--folder", target, *fresh)
        assert code == 2
        assert str(target) in err
        assert "--folder" in err
    assert [path.read_text() for path in tmp_path.rglob("there*") if path.is_file()] in ([], ["mine"])
    assert there.is_file() or [path.read_text() for path in there.iterdir()] == ["mine"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(recipe_file, ecoflap_command, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = ecoflap_command("run", recipe_file(), "--folder", tmp_path / "locked" / "run")
    assert code == 2
    assert "cannot be written: Permission denied. Name another folder with --folder" in err


def test_a_folder_that_cannot_be_made_is_told(recipe_file, ecoflap_command, tmp_path):
    code, _, err = ecoflap_command("run", recipe_file(), "--folder", tmp_path / ("long" * 90))
    assert code == 2
    assert "is no path that can be read: file name too long" in " ".join(err.split())


def test_a_missing_recipe_is_told_with_those_that_ship(ecoflap_command):
    code, _, err = ecoflap_command("plan", "quickstrat")
    assert code == 2
    assert "quickstrat is no file, and there is no shipped recipe named 'quickstrat'. Did you mean 'quickstart'?" in err


def test_set_overrides_and_names_the_folder(recipe_file, ecoflap_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ecoflap_command("run", recipe_file(), "--set", "sparsity=0.25", "--set", "export=[]")
    assert code == 0, err
    assert (tmp_path / "runs" / "recipe-sparsity-0.25" / "report.json").is_file()
    assert "25.00 % of 23,040" in out


def test_fresh_begins_anew(recipe_file, finished, ecoflap_command):
    folder, *_ = finished
    scores = (folder / "scores.jsonl").stat().st_ino
    (folder / "mine.txt").write_text("left behind")
    code, _, _ = ecoflap_command("run", recipe_file(), "--folder", folder)
    assert (code, (folder / "scores.jsonl").stat().st_ino) == (0, scores)
    code, _, err = ecoflap_command("run", recipe_file(), "--folder", folder, "--fresh")
    assert code == 0
    assert "score: " in err
    assert not (folder / "mine.txt").exists()


def test_list_shows_parts_with_their_parameters(ecoflap_command):
    code, out, _ = ecoflap_command("list")
    assert code == 0
    titles = ["scorers", "allocators", "pruners", "adapters", "exporters", "datasets", "evaluators"]
    assert [line for line in out.splitlines() if line in titles] == titles
    code, out, _ = ecoflap_command("list", "pruner")
    line = next(line for line in out.splitlines() if line.strip().startswith("sparsegpt"))
    assert "damping=0.01, block_size=128" in line
    assert "ecoflap.plugins.pruners.sparsegpt:SparseGPT (built-in)" in line
    line = next(line for line in out.splitlines() if line.strip().startswith("dsnot"))
    assert "inner=Wanda(" in line
    code, _, err = ecoflap_command("list", "pruners")
    assert code == 2
    assert "'pruners'" in err
    assert "Did you mean 'pruner'?" in err


def test_a_run_that_is_not_finished_is_verified_with_3(finished, ecoflap_command):
    folder, *_ = finished
    assert ecoflap_command("verify", folder)[0] == 0
    for gone in (folder / "report.json", folder / "report.html"):
        gone.unlink(missing_ok=True)
    code, out, _ = ecoflap_command("verify", folder)
    assert code == 3
    assert "not finished" in out


def test_inspect_shows_a_model_without_reading_its_weights(pico, ecoflap_command, tmp_path):
    code, out, err = ecoflap_command("inspect", weightless(pico, tmp_path))
    assert code == 0, err
    assert "27,360 parameters" in out
    assert "model.layers.0 … model.layers.2 (3)" in out
    line = next(line.split() for line in out.splitlines() if "self_attn.k_proj.weight" in line)
    assert line == ["self_attn.k_proj.weight", "16×32", "512", "language"]
    assert "model.embed_tokens.weight" in out
    code, _, err = ecoflap_command("inspect", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err


def test_compare_puts_runs_side_by_side(finished, recipe_file, ecoflap_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, *_ = finished
    other = tmp_path / "b" / "finished"
    sparser = recipe_file(sparsity=0.75, export=None, evaluate=None, score=None)
    assert ecoflap_command("run", sparser, "--folder", other)[0] == 0
    code, out, _ = ecoflap_command("compare", folder, other)
    assert code == 0
    head, _, first, second, *said = (line for line in out.splitlines() if line.strip())
    assert said[0] == "Measures: value ± standard error."
    for column in (
        "run",
        "method",
        "sparsity",
        "perplexity dense",
        "perplexity pruned",
        "time",
        "peak memory",
        "model",
    ):
        assert column in head
    assert "50.00 %" in first
    assert "zeroth_order → ecoflap → wanda" in first
    assert str(folder) in first
    assert "75.00 %" in second
    assert "uniform → wanda" in second
    assert "–" in second
    assert (tmp_path / "runs" / "comparison" / "report.html").is_file()
    code, out, err = ecoflap_command("compare", folder, other, "--markdown", "--out", tmp_path / "out")
    assert err == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["runs"]) == 2
    assert (tmp_path / "out" / "report.md").read_text().startswith(out)
    lines = out.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == len({line.count("|") for line in lines}) == 1
    assert lines[1].startswith("|:--")


def test_compare_refuses_what_is_not_finished(finished, ecoflap_command, tmp_path, monkeypatch):
    folder, *_ = finished
    monkeypatch.chdir(tmp_path)  # for without --out it looks at runs/comparison first
    (folder / "report.json").unlink()
    code, _, err = ecoflap_command("compare", folder)
    assert code == 2
    assert err == (
        f"ecoflap: {folder}: this run is not finished: it has no report.json. Run its recipe again to go on\n"
    )
    code, _, err = ecoflap_command("compare", tmp_path / "none")
    assert code == 2
    assert err == f"ecoflap: {tmp_path / 'none'}: no run folder: there is no folder of that name\n"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size"])
@pytest.mark.parametrize("allocate", ["uniform", "ecoflap"])
def test_a_size_of_nothing_is_told_with_the_layers_that_have_no_weights(
    pico, recipe_file, ecoflap_command, tmp_path, key, allocate
):
    shutil.copytree(pico / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: 0}))
    code, _, err = ecoflap_command("plan", recipe_file(model=str(tmp_path / "model"), allocate=allocate))
    assert code == 2
    assert "layers have no weights: model.layers.0." in err
    assert "correct it, or keep their tower" in err


def test_a_name_with_a_line_break_makes_no_line_of_its_own(recipe_file, ecoflap_command, tmp_path):
    code, _, err = ecoflap_command("plan", recipe_file(model=f"{tmp_path}/a\necoflap: all is well"))
    assert code == 2
    assert r"a\necoflap: all is well" in err
    assert not any(line.startswith("ecoflap: all") for line in err.splitlines())


def test_a_sweep_is_listed_run_compared_and_found_again(recipe_file, ecoflap_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = recipe_file(export=None)
    grid = ["sweep", file, "--set", "allocate=uniform,ecoflap", "--seeds", "2"]
    code, out, err = ecoflap_command(*grid, "--dry-run")
    assert code == 0, err
    assert "4 runs, 0 of them done" in out
    line = next(line.split() for line in out.splitlines() if "allocate-ecoflap-seed-1" in line)
    assert line == ["4", "allocate-ecoflap-seed-1", "to", "do", "computed", "that", "of", "1"]
    assert not (tmp_path / "runs").exists()

    code, out, err = ecoflap_command(*grid)
    assert code == 0, err
    folder = tmp_path / "runs" / "sweeps" / "recipe"
    assert f"sweep folder {folder}: 4 runs: 4 to do" in err
    assert f"report: {folder / 'report.html'}" in err
    *table, said = (line for line in out.splitlines() if "→" in line)
    assert [line.split("  ")[0].strip() for line in table] == ["uniform → wanda", "zeroth_order → ecoflap → wanda"]
    took = "zeroth_order → ecoflap → wanda: 2 of 2 runs, uniform → wanda: 1 of 2 runs"
    assert said == f"†: as measured, without what these took over from another run: dense evaluation ({took})."
    assert {name.name for name in folder.glob("report.*")} == {
        f"report.{kind}" for kind in ("html", "json", "csv", "md")
    }

    code, out, err = ecoflap_command(*grid, "--dry-run")
    assert "4 runs, 4 of them done" in out
    code, out, _ = ecoflap_command("compare", folder)
    assert code == 0
    assert "mean ± standard deviation over seeds" in out

    (folder / "report.md").write_text("my own notes")
    for again in (grid, ["compare", folder]):
        code, _, err = ecoflap_command(*again)
        assert code == 2
        assert f"{folder}: a comparison would replace report.md, which none has written, or which changed since" in err
    assert (folder / "report.md").read_text() == "my own notes"


def test_a_sweep_with_problems_is_2_and_begins_nothing(recipe_file, ecoflap_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = ecoflap_command("sweep", recipe_file(), "--set", "sparsty=0.5,0.6", "--set", "prune.use=wonda")
    assert code == 2
    assert err.startswith("ecoflap: 2 problems\n  --set sparsty=0.5,0.6: sparsty: unknown key 'sparsty'. Did you mean")
    assert not (tmp_path / "runs").exists()


def test_a_sweep_with_a_run_that_failed_is_1_and_compares_the_rest(recipe_file, ecoflap_command, tmp_path, monkeypatch):
    from ecoflap.core.errors import EcoflapError
    from ecoflap.core.sweep import sweep

    run = sweep.run

    def sometimes(recipe, **keywords):
        if recipe.sparsity == 0.6:
            raise EcoflapError("no such luck")
        return run(recipe, **keywords)

    monkeypatch.setattr(sweep, "run", sometimes)
    arguments = ["sweep", recipe_file(export=None), "--set", "sparsity=0.5,0.6", "--folder", tmp_path / "s"]
    code, out, err = ecoflap_command(*arguments)
    assert code == 1
    assert "Not finished, and left out: sparsity-0.6-seed-0" in out
    assert err.endswith("1 failed; the same command tries again\n  sparsity-0.6-seed-0: no such luck\n")


@pytest.mark.slow
def test_the_installed_command_ends_with_2_and_no_traceback(recipe_file, tmp_path):
    command = [sys.executable, "-c", "from ecoflap.core.cli.main import main; main()", "run", recipe_file(sparsity=1.7)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "recipe.yaml:1:" in ended.stderr


def test_a_terminal_without_these_letters_does_not_end_a_run(finished, tmp_path):
    folder, *_ = finished
    command = [sys.executable, "-c", "from ecoflap.core.cli.main import main; main()", "compare", folder]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "zeroth_order ? ecoflap ? wanda" in ended.stdout


def test_what_the_system_refuses_ends_with_2_and_no_traceback(finished, recipe_file, ecoflap_command, monkeypatch):
    folder, *_ = finished
    record, is_file = folder / "exports" / "safetensors.json", Path.is_file

    def refused(path):
        if path == record:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    code, _, err = ecoflap_command("run", recipe_file(), "--folder", folder)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"ecoflap: {record} cannot be read or written: Permission denied. Change its permissions, or ask whom it "
        f"belongs to."
    )
