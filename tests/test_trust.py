"""Code runs only where it was asked for: what others wrote is read, and nothing of it is imported, built or called."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from sealed_by_hand import read_sealed, write_sealed

import ecoflap
from ecoflap.core.errors import EcoflapError, RegistryError
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

EVIL = """
from pathlib import Path
Path({mark!r}).touch()

class Part:
    def __call__(self, *given): ...
    matches = load = towers = layers = max_length = collate = loss = tokens = save = __call__
"""
PLACES = {
    "prune": {"prune": "evil:Part"},
    "prune.use": {"prune": {"use": "evil:Part", "level": 1}},
    "score": {"score": "evil:Part"},
    "score.calibration": {"score": {"use": "zeroth_order", "calibration": "evil:Part"}},
    "allocate": {"allocate": "evil:Part"},
    "calibration.use": {"calibration": {"use": "evil:Part", "batch_size": 1}},
    "evaluate": {"evaluate": "evil:Part"},
    "evaluate.0": {"evaluate": ["evil:Part"]},
    "evaluate.0.data": {"evaluate": [{"use": "perplexity", "data": "evil:Part"}]},
    "export.0": {"export": ["evil:Part"]},
    "model.adapter": {"model": {"source": "m", "adapter": "evil:Part"}},
    "towers.language.prune": {"towers": {"language": {"prune": "evil:Part"}}},
}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that is there once somebody else's module was imported, which is importable as ``evil``."""
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    yield tmp_path / "mark"
    sys.modules.pop("evil", None)


@pytest.fixture
def command(ecoflap_command):
    """Run the command: its exit code and what it said, on either stream."""

    def command(*arguments):
        code, out, err = ecoflap_command(*arguments)
        return code, out + err

    return command


def recipe(folder, **keys):
    """A recipe's file, of flow style, so that each part stands on a line of its own."""
    whole = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude", **keys}
    (folder / "r.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in whole.items()))
    return folder / "r.yaml"


@pytest.mark.parametrize("asked", ["plan", "run"])
@pytest.mark.parametrize("place", PLACES)
def test_a_recipe_imports_nothing(place, asked, mark, tmp_path, command):
    file = recipe(tmp_path, **PLACES[place])
    line = 1 + next(n for n, text in enumerate(file.read_text().splitlines()) if "evil" in text)
    code, said = command(asked, file)
    assert code == 2
    where = "evaluate" if place == "evaluate" else place
    assert f"r.yaml:{line}:" in said
    assert f": {where}" in said
    assert "'evil:Part' is an import path, and code runs here only where it is asked for." in said
    assert "say --allow-code, or allow_code=True from Python; or install it as a plugin" in said
    assert not mark.exists()


def test_with_leave_it_is_imported(mark, tmp_path):
    file = recipe(tmp_path, prune="evil:Part")
    with pytest.raises(EcoflapError):
        ecoflap.run(file, allow_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"prune": {"use": "os:system", "command": "touch mark"}},
        {"evaluate": {"use": "subprocess:run", "args": ["touch", "mark"]}},
        {"evaluate": {"use": "subprocess:Popen", "args": ["touch", "mark"]}},
        {"export": {"use": "builtins:exec", "source": "open('mark', 'w')"}},
    ],
)
def test_what_makes_no_part_is_not_called_even_with_leave(keys, mark, tmp_path, command):
    file = recipe(tmp_path, **keys)
    for leave in ([], ["--allow-code"]):
        code, said = command("plan", file, *leave)
        assert code == 2
        assert ("is an import path" in said) is not leave
        assert not mark.exists()
    assert "it is no class, and does not say that it makes" in said or "it cannot be called" in said


MAKES = """
from ecoflap import Pruner, Scorer
MADE = []
class NoCall:
    def __init__(self): MADE.append(self)
class Older:
    def __init__(self): MADE.append(self)
    def __call__(self, weight): ...
class Prunes:
    def __init__(self): MADE.append(self)
    def __call__(self, weight, seen, budget, layer): ...
def says_nothing(): return Prunes()
def scores() -> Scorer: return Prunes()
def prunes() -> Pruner: return Prunes()
def made() -> Prunes: return Prunes()
"""


def test_an_import_path_is_held_to_its_kind_before_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "makes_parts.py").write_text(MAKES)
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry(installed=False, allow_code=True)
    for name, told in (
        ("NoCall", r"it is no pruner: it cannot be called\. A pruner is called with \(weight, seen, budget, layer\)"),
        ("Older", r"its __call__ takes \(weight\), and is called with \(weight, seen, budget, layer\)"),
        ("says_nothing", "it is no class, and does not say that it makes a pruner"),
        ("scores", r"its __call__ takes \(replay, layers\), and is called with"),
        ("MADE", "makes no part"),
    ):
        with pytest.raises(RegistryError, match=told):
            registry.find("pruner", f"makes_parts:{name}")
    with pytest.raises(RegistryError, match="it is no adapter: it has no matches, load, towers"):
        registry.find("adapter", "makes_parts:Prunes")
    import makes_parts

    assert makes_parts.MADE == []
    for name in ("Prunes", "prunes", "made"):
        assert registry.find("pruner", f"makes_parts:{name}") is getattr(makes_parts, name)
    assert makes_parts.MADE == []


@pytest.mark.parametrize("written", ["grid: {prune: [magnitude, 'evil:Part']}", "methods: {own: {prune: 'evil:Part'}}"])
def test_a_sweep_imports_nothing(written, mark, tmp_path, command):
    recipe(tmp_path)
    (tmp_path / "s.yaml").write_text(f"version: 1\nrecipe: r.yaml\n{written}\n")
    code, said = command("sweep", "s.yaml", "--dry-run")
    assert (code, mark.exists()) == (2, False)
    assert "s.yaml:3:" in said
    assert "'evil:Part' is an import path" in said
    code, said = command("sweep", "s.yaml", "--dry-run", "--allow-code")
    assert mark.exists()


def test_the_command_line_itself_needs_leave(mark, tmp_path, command, pico_llama_folder):
    file = recipe(tmp_path)
    assert (
        "--set prune=evil:Part: prune: the pruner 'evil:Part' is" in command("plan", file, "--set=prune=evil:Part")[1]
    )
    assert "the adapter 'evil:Part' is an" in command("inspect", pico_llama_folder, "--adapter", "evil:Part")[1]
    assert not mark.exists()


def test_no_registry_file_is_read_that_the_user_did_not_name(mark, tmp_path, command):
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {evil: evil}\n")
    (tmp_path / ".env").write_text("ECOFLAP_REGISTRY=registry.yaml\n")
    assert (
        "r.yaml:5:1: registry: unknown key 'registry'" in command("plan", recipe(tmp_path, registry="registry.yaml"))[1]
    )
    command("plan", recipe(tmp_path, version=1))
    assert not mark.exists()


def test_a_name_with_a_colon_is_no_alias(tmp_path):
    (tmp_path / "own.yaml").write_text("version: 1\naliases: {pruner: {'os:system': wanda}}\n")
    with pytest.raises(
        RegistryError, match=r"own\.yaml:2:20: aliases\.pruner\.os:system: should be a name without ':'"
    ):
        load_registry(tmp_path / "own.yaml", installed=False)


@pytest.fixture(scope="module")
def finished(pico_llama, pico_tokenizer, tmp_path_factory):
    """A finished run's folder."""
    folder = tmp_path_factory.mktemp("runs")
    pico_llama().save_pretrained(folder / "model", safe_serialization=True)
    pico_tokenizer.save_pretrained(folder / "model")
    ecoflap.run(
        {"version": 1, "model": str(folder / "model"), "sparsity": 0.5, "prune": "magnitude"}, folder=folder / "run"
    )
    return folder / "run"


@pytest.fixture
def theirs(finished, tmp_path):
    """The run folder of somebody else, whose recipe has been edited."""
    shutil.copytree(finished, tmp_path / "theirs")
    return tmp_path / "theirs"


PRUNED_BY = ("prune.use", "score.calibration", "towers.language.prune")
"""Those that are written as a run writes them, of which an export asks nothing."""


@pytest.mark.parametrize("place", PLACES)
def test_nothing_of_a_run_folder_is_run(place, theirs, mark, command):
    file = theirs / "recipe.yaml"
    edited = {**yaml.safe_load(file.read_text()), **PLACES[place]}
    write_sealed(file, yaml.safe_dump(edited, sort_keys=False))  # a seal is no signature: anybody can make one
    report = read_sealed(theirs / "report.json")
    told = PLACES[place] if place in PRUNED_BY else {"prune": {"use": "evil:Part"}}
    write_sealed(theirs / "report.json", {**report, "recipe": {**report["recipe"], **told}})
    before = sorted(theirs.rglob("*"))
    code, said = command("export", theirs, "--to", "safetensors")
    if place in PRUNED_BY:
        assert (code, mark.exists()) == (0, False)
        assert "evil:Part" in file.read_text()
    else:
        where = "export: export.0" if place.startswith("export") else "recipe.yaml:"  # exports are listed anew
        assert where in said
        assert "'evil:Part' is an import path" in said
        assert (code, mark.exists(), sorted(theirs.rglob("*"))) == (2, False, before)
    for arguments in (["report", str(theirs)], ["compare", str(theirs), "--out", str(mark.parent / "out")]):
        assert command(*arguments)[0] == 0
    assert not mark.exists()
    assert command("run", file, "--folder", theirs)[0] == 2
    assert not mark.exists()


def test_runs_that_are_reused_are_only_read(theirs, mark, pico_llama_folder, tmp_path):
    file = theirs / "recipe.yaml"
    unsealed = file.read_text().rpartition("# seal: ")[0]
    write_sealed(file, unsealed.replace("use: magnitude", "use: evil:Part"))
    made = {"version": 1, "model": str(pico_llama_folder), "sparsity": 0.5, "prune": "magnitude", "reuse": str(theirs)}
    ecoflap.run(made, folder=tmp_path / "own")
    assert not mark.exists()


def test_a_packed_file_names_no_code(theirs, mark):
    """What metadata, a manifest and a configuration say of adapters is not looked at."""
    ecoflap.export_run(theirs, "safetensors")
    folder = theirs / "exports" / "safetensors"
    model = ecoflap.load_model(folder)
    (folder / "SHA256SUMS").unlink()
    save_packed(
        folder / "model.packed.safetensors",
        model.state_dict(),
        {},
        metadata={"adapter": "evil:Part", "use": "evil:Part"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "adapter": "evil:Part", "plugins": {"evil": "evil"}}))
    (folder / "registry.yaml").write_text("version: 1\nplugins: {evil: evil}\n")
    again = ecoflap.load_model(folder)
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    assert not mark.exists()


class Halves:
    """A pruner that is in no module one could import."""

    def __call__(self, weight, seen, budget, layer):
        mask = ecoflap.select(weight.abs().float(), budget, "layer")
        return ecoflap.Pruned(mask, weight * mask)


def test_objects_and_classes_of_ones_own_need_no_leave(pico_llama_folder, tmp_path):
    class Local(Halves):
        pass

    made = {"version": 1, "model": str(pico_llama_folder), "sparsity": 0.5, "prune": Local}
    done = ecoflap.run(made, folder=tmp_path / "run")
    assert done.report.kept * 2 == done.report.prunable
    assert ecoflap.run(made, folder=tmp_path / "run").plan == done.plan
    recorded = tmp_path / "run" / "recipe.yaml"
    name = f"{__name__}:{Local.__qualname__}"
    assert recorded.read_text().splitlines()[0] == (
        f"# It runs only with --allow-code, or allow_code=True from Python, for it names code: prune: {name}"
    )
    with pytest.raises(EcoflapError, match=rf"recipe\.yaml:\d+:\d+: prune\.use: the pruner '{__name__}.*--allow-code"):
        ecoflap.run(recorded, folder=tmp_path / "run")


def test_a_function_may_make_a_part_of_ones_own():
    registry = load_registry(installed=False)
    made = {"version": 1, "model": "m", "sparsity": 0.5, "prune": {"use": lambda level=1: Halves(), "level": 3}}
    assert isinstance(parse_recipe(made, registry=registry).prune.built, Halves)
    assert parse_recipe({**made, "prune": Halves}, registry=registry).code() == [f"prune: {__name__}:Halves"]
    assert parse_recipe({**made, "prune": "magnitude"}, registry=registry).code() == []


TASK = """
task: evil_task
dataset_path: json
doc_to_text: !function evil.text
doc_to_target: x
"""


@pytest.mark.parametrize("harness", ["lm_eval", "lmms_eval"])
def test_tasks_of_a_folder_are_code_too(harness, mark, tmp_path, command):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "evil.py").write_text((tmp_path / "evil.py").read_text())
    (tmp_path / "tasks" / "t.yaml").write_text(TASK)
    file = recipe(tmp_path, evaluate={"use": harness, "tasks": ["evil_task"], "include_path": "tasks"})
    code, said = command("plan", file)
    assert (code, mark.exists()) == (2, False)
    told = f"evaluate.include_path: {harness} runs the code that it finds in {tmp_path / 'tasks'}, and code runs here"
    assert told in said
    assert "r.yaml:5:" in said
    _, said = command("plan", file, "--allow-code")
    assert "runs the code that it finds" not in said


def test_python_m_looks_for_nothing_in_the_working_directory(mark, tmp_path):
    """Whoever types it may be in a folder of somebody else's."""
    for name in ("typer", "torch", "planted"):
        (tmp_path / f"{name}.py").write_text((tmp_path / "evil.py").read_text())
    (tmp_path / "planted.egg-info").mkdir()
    (tmp_path / "planted.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (tmp_path / "planted.egg-info" / "entry_points.txt").write_text("[ecoflap]\nplanted = planted\n")
    package = Path(ecoflap.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "ecoflap", "list", "pruner"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, mark.exists()) == (0, False), ended.stderr
    assert "wanda" in ended.stdout


@pytest.mark.parametrize("name", ["warnings.jsonl", "stages.jsonl", ".lock", "exports"])
def test_a_run_writes_through_no_link(name, theirs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir() if name == "exports" else outside.write_text("mine\n")
    (theirs / name).unlink(missing_ok=True)
    (theirs / name).symlink_to(outside)
    with pytest.raises(EcoflapError, match=rf"{name} is a link, and a run writes into its own folder alone"):
        ecoflap.export_run(theirs, "safetensors")
    assert list(outside.iterdir()) == [] if name == "exports" else outside.read_text() == "mine\n"
