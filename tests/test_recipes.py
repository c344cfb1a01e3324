"""The recipes that ship or come with an example: each says how it is run, is valid, and runs on a pico model."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import ecoflap
from ecoflap.core.budget import keep_count
from ecoflap.core.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parents[1]
SHIPPED, EXAMPLES = sorted((ROOT / "recipes").rglob("*.yaml")), sorted((ROOT / "examples").rglob("*.yaml"))
RECIPES = {path.stem: path for path in (*SHIPPED, *EXAMPLES)}

SMALL = {
    "quickstart": [
        "calibration.samples=2", "calibration.sequence_length=16", "score.calibration.samples=2",
        "score.calibration.sequence_length=16", "evaluate.data.samples=2", "evaluate.data.sequence_length=16",
    ],
    "stable-rank": [],
}  # fmt: skip
"""What makes a recipe fit a pico model."""


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The shipped parts, and those of the examples without installing them."""
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    plugins, before = {}, set(sys.modules)
    for file in (ROOT / "examples").glob("*/pyproject.toml"):
        monkeypatch.syspath_prepend(file.parent / "src")
        plugins |= tomllib.loads(file.read_text("utf-8"))["project"]["entry-points"]["ecoflap"]
    listed = "".join(f"  {name}: {module}\n" for name, module in plugins.items())
    (tmp_path / "registry.yaml").write_text(f"version: 1\nplugins:\n{listed}")
    yield ecoflap.load_registry(tmp_path / "registry.yaml", installed=False)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in plugins.values():
            del sys.modules[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_runs_the_recipe(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = RECIPES[name].read_text("utf-8").splitlines()[0]
    command = re.fullmatch(r"# (?:pip install \S+ && )?ecoflap run (\S+)", first)
    assert command, first
    assert find_recipe(command[1]).resolve() == RECIPES[name].resolve()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_valid(name, registry):
    recipe = load_recipe(RECIPES[name], registry=registry)
    assert recipe.sparsity is not None or recipe.pattern is not None


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs_on_a_pico_model(name, registry, pico_llama_folder, tmp_path):
    set_ = [f"model.source={pico_llama_folder}", *SMALL[name]]
    done = ecoflap.run(RECIPES[name], folder=tmp_path / "run", set_=set_, registry=registry)
    assert done.report["kept"] == done.plan.keep == keep_count(done.plan.size, done.recipe.sparsity)
    assert (tmp_path / "run" / "exports" / "safetensors" / "model.packed.safetensors").is_file()
