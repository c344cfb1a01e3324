"""Plugins that others write: installed from a package, named in a registry file, or imported by a recipe."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ecoflap import load_registry
from ecoflap.core.errors import RecipeError, RegistryError
from ecoflap.core.recipe.load import parse_recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "ecoflap-stable-rank"
RECIPE = "version: 1\nmodel: m\nsparsity: 0.5\nallocate: ecoflap\nprune: magnitude\nscore: "
MINE = """
from dataclasses import dataclass
from ecoflap import hookimpl

@dataclass(frozen=True)
class Mine:
    level: int = 1
    data = False
    def __call__(self, replay, layers):
        return ((layer.name, float(self.level)) for layer in layers)
"""
HOOK = """
@hookimpl
def {hook}():
    return {{"{name}": Mine}}
"""
SEEN = """
import json
from pathlib import Path
from ecoflap import load_registry
from ecoflap.core.recipe.load import load_recipe

registry = load_registry(allow_code=True)
recipe = load_recipe({recipe!r}, registry=registry)
parsed = recipe.score.plain()
own = load_recipe({recipe!r}, registry=registry, set_=["score=ecoflap_stable_rank:StableRank"]).score.plain()
print(json.dumps([registry.names("scorer"), str(registry.origin("scorer", "stable_rank")), parsed, own]))
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The example package, installed into a folder of its own beside the environment the tests run in."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source)  # building leaves files in the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(source)], check=True)
    return target


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes an importable module, and a registry file that names plugins; gives the file."""
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(plugins, **texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            written.append(name)
        (tmp_path / "registry.yaml").write_text(f"version: 1\nplugins: {plugins}\n")
        return tmp_path / "registry.yaml"

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_an_installed_package_is_found_from_anywhere(installed, tmp_path):
    code = SEEN.format(recipe=str(EXAMPLE / "stable-rank.yaml"))
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("ECOFLAP_REGISTRY", None)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    names, origin, parsed, own = json.loads(run.stdout)
    assert "stable_rank" in names
    assert origin == "ecoflap_stable_rank:StableRank (ecoflap-stable-rank 0.1.0)"
    assert parsed == {"use": "stable_rank", "relative": True, "granularity": "layer", "aggregate": "mean"}
    assert own["use"] == "ecoflap_stable_rank:StableRank"


@pytest.fixture
def whole_run(pico_llama_folder, tmp_path):
    """Run a recipe with this scorer as a process in another folder; the report and the table it printed."""

    def whole_run(scorer, environment, *arguments):
        elsewhere, recipe = tmp_path / "elsewhere", tmp_path / "recipe.yaml"
        elsewhere.mkdir()
        recipe.write_text(RECIPE.replace("model: m", f"model: {pico_llama_folder}") + scorer + "\n")
        command = [
            sys.executable,
            "-c",
            "from ecoflap.core.cli.main import main; main()",
            "run",
            "../recipe.yaml",
            *arguments,
        ]
        cleared = {key: value for key, value in os.environ.items() if key != "ECOFLAP_REGISTRY"}
        ended = subprocess.run(
            command, cwd=elsewhere, env={**cleared, **environment}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads((elsewhere / "runs" / "recipe" / "report.json").read_text()), ended.stdout

    return whole_run


def test_an_installed_scorer_runs_from_a_recipe(installed, whole_run):
    report, said = whole_run("{use: stable_rank, granularity: layer}", {"PYTHONPATH": str(installed)})
    assert "stable_rank → ecoflap → magnitude: 50.00 % of 23,040 weights pruned" in said
    assert report["kept"] * 2 == report["prunable"] == 23040
    scores = {name: group["score"] for name, group in report["groups"].items()}
    assert len(set(scores.values())) == 21
    kept = {name: group["keep"] / group["size"] for name, group in report["groups"].items()}
    assert kept[max(scores, key=scores.get)] == max(kept.values())  # all that the allocator went by


@pytest.fixture
def run_here(pico_llama_folder, tmp_path, monkeypatch, ecoflap_command):
    """The same in this process, which finds their module in the folder of the test."""
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def run_here(scorer, *arguments):
        recipe = RECIPE.replace("model: m", f"model: {pico_llama_folder}") + scorer + "\n"
        (tmp_path / "recipe.yaml").write_text(recipe)
        code, said, err = ecoflap_command("run", "../recipe.yaml", *arguments)
        assert code == 0, err
        return json.loads((tmp_path / "elsewhere" / "runs" / "recipe" / "report.json").read_text()), said

    yield run_here
    sys.modules.pop("their_mod", None)


def test_a_scorer_of_a_registry_file_runs_from_a_recipe(run_here, tmp_path):
    (tmp_path / "their_mod.py").write_text(MINE + HOOK.format(hook="ecoflap_register_scorers", name="mine"))
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {mine: their_mod}\n")
    report, said = run_here("{use: mine, level: 3}", "--registry", "../registry.yaml")
    assert "mine → ecoflap → magnitude" in said
    assert {group["score"] for group in report["groups"].values()} == {7 * 3.0}


def test_a_scorer_of_an_import_path_runs_from_a_recipe(run_here, tmp_path):
    (tmp_path / "their_mod.py").write_text(MINE)
    report, said = run_here("{use: 'their_mod:Mine', level: 2}", "--allow-code")
    assert "their_mod:Mine → ecoflap → magnitude" in said
    assert {group["score"] for group in report["groups"].values()} == {7 * 2.0}


def test_a_registry_file_brings_a_plugin(modules):
    file = modules("{mine: my_mod}", my_mod=MINE + HOOK.format(hook="ecoflap_register_scorers", name="mine"))
    registry = load_registry(file, installed=False)
    recipe = parse_recipe(RECIPE + "{use: mine, level: 3}", registry=registry)
    assert recipe.score.scorer.build().level == 3
    assert str(registry.origin("scorer", "mine")) == f"my_mod:Mine ({file}:2:17)"


def test_an_import_path_needs_no_registration(modules):
    modules("{}", my_mod=MINE)
    registry = load_registry(installed=False, allow_code=True)
    recipe = parse_recipe(RECIPE + "{use: my_mod:Mine, level: 3}", registry=registry)
    assert recipe.score.scorer.build().level == 3


def test_an_unknown_parameter_is_told_with_the_nearest(modules):
    modules("{}", my_mod=MINE)
    with pytest.raises(
        RecipeError, match=r"recipe:6:27: score\.levl: my_mod:Mine has no parameter 'levl'\. Did you mean"
    ):
        parse_recipe(RECIPE + "{use: my_mod:Mine, levl: 3}", registry=load_registry(installed=False, allow_code=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "did not load: ModuleNotFoundError: No module named 'no_such_module'."),
        ("def (", "did not load: SyntaxError"),
        (MINE + HOOK.format(hook="ecoflap_register_scorer", name="x"), "Did you mean 'ecoflap_register_scorers'?"),
        (MINE + HOOK.format(hook="ecoflap_register_scorers", name="magnitude"), "two plugins offer the scorer"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_be_used_is_named_with_the_way_out(modules, text, said):
    file = modules("{mine: my_mod}", my_mod=text)
    with pytest.raises(RegistryError) as caught:
        load_registry(file, installed=False)
    assert said in str(caught.value)
    assert f"plugin 'mine' (my_mod, {file}:2:17)" in str(caught.value)
    assert "'mine' under disable: in your registry file." in str(caught.value)
    file.write_text(file.read_text() + "disable: [mine]\n")
    assert "mine" not in load_registry(file, installed=False).names("scorer")


def test_the_score_is_the_stable_rank(installed, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(installed)
    from ecoflap_stable_rank import StableRank

    from ecoflap import Layer

    flat, thin, nothing = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    flat.weight.data, thin.weight.data = torch.eye(4), torch.outer(torch.ones(4), torch.arange(4.0))
    nothing.weight.data.zero_()
    layers = [Layer("flat", flat), Layer("thin", thin), Layer("nothing", nothing)]
    assert dict(StableRank()(None, layers)) == pytest.approx({"flat": 1, "thin": 0.25, "nothing": 0})
    assert dict(StableRank(relative=False)(None, layers)) == pytest.approx({"flat": 4, "thin": 1, "nothing": 0})
