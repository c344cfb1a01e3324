"""The recipes that ship or come with an example: each says how it is run, is valid, and runs on a pico model."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pico_encoders
import pico_t5
import pytest
from pico_llava import FAMILIES

import ecoflap
from ecoflap.core.budget.counts import keep_count
from ecoflap.core.recipe.load import find_recipe, load_recipe
from ecoflap.core.sweep.file import read_sweep
from ecoflap.core.sweep.grid import planned_runs

ROOT = Path(__file__).parents[1]
SHIPPED, EXAMPLES = sorted((ROOT / "recipes").rglob("*.yaml")), sorted((ROOT / "examples").rglob("*.yaml"))


def named(path):
    """``box/blip2``, as the command has it; an example's goes by its file."""
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix() if path in SHIPPED else path.stem


FILES = {named(path): path for path in (*SHIPPED, *EXAMPLES)}
SWEEPS = {name: path for name, path in FILES.items() if "\nrecipe:" in path.read_text("utf-8")}
RECIPES = {name: path for name, path in FILES.items() if name not in SWEEPS}
PAPER = {name for name in RECIPES if name.startswith("paper/")}
"""Of models too large to run here: test_paper_recipes.py plans them."""

FEW_WORDS = [
    "calibration.samples=2", "calibration.sequence_length=16", "score.calibration.samples=2",
    "score.calibration.sequence_length=16", "evaluate.data.samples=2", "evaluate.data.sequence_length=16",
]  # fmt: skip
FEW_OF_TWO = [setting.replace("evaluate.", "evaluate.0.") for setting in FEW_WORDS] + ["evaluate.1.data.samples=8"]
NO_SCORE = [setting for setting in FEW_OF_TWO if not setting.startswith("score")]
ON_PICO = {
    "quickstart-llama": FEW_WORDS, "box/smollm2": FEW_WORDS, "box/gemma3": FEW_WORDS, "stable-rank": [],
    "language/fast": NO_SCORE, "language/balanced": FEW_OF_TWO, "language/best": FEW_OF_TWO,
    "language/best-shortened": FEW_OF_TWO,
}  # fmt: skip
"""What makes a recipe fit a pico model."""

FEW_PICTURES = ["calibration.samples=4", "score.samples=2"]
FEW_PAIRS = ["calibration.samples=16", "evaluate.0.data.samples=4"]
FEWER_PAIRS, SCORED_PAIRS = ["calibration.samples=32", *FEW_PAIRS[1:]], ["score.samples=16"]
ON_ITS_OWN = {
    "quickstart": [*FEW_PICTURES, "evaluate.data.samples=4"],
    "box/blip2": [*FEW_PICTURES, "evaluate.data.samples=4"],
    "box/blip2-best": [
        "calibration.samples=8",
        "calibration.batch_size=4",
        "score.samples=2",
        "evaluate.data.samples=4",
    ],
    "vision-language/fast": [*FEW_PICTURES, "evaluate.data.samples=4"],
    "vision-language/balanced": [*FEW_PICTURES, "evaluate.data.samples=4"],
    "vision-language/best": ["calibration.samples=16", "score.samples=2", "evaluate.data.samples=4"],
    "box/clip-best": [
        "calibration.samples=32",
        "score.samples=16",
        "evaluate.0.data.samples=4",
        "evaluate.1.data.samples=4",
    ],
    "box/clip": [
        "calibration.samples=16",
        "score.samples=16",
        "evaluate.0.data.samples=4",
        "evaluate.1.data.samples=4",
    ],
    "image-text/fast": [*FEW_PAIRS, "evaluate.1.data.samples=4"],
    "image-text/balanced": [*FEWER_PAIRS, *SCORED_PAIRS, "evaluate.1.data.samples=4"],
    "image-text/best": [*FEWER_PAIRS, *SCORED_PAIRS, "evaluate.1.data.samples=4"],
    "vision/fast": FEW_PAIRS,
    "vision/balanced": [*FEWER_PAIRS, *SCORED_PAIRS],
    "vision/best": [*FEWER_PAIRS, *SCORED_PAIRS],
}
"""What makes a recipe for a model in the box short."""

FEW_ANSWERS = [f"evaluate.{at}.data.{few}" for at in (0, 1) for few in ("samples=2", "sequence_length=16")]
FEW_BATCHES = ["calibration.samples=8", "calibration.sequence_length=16"]  # of four: one to prune by, one to choose by
ON_PICO_T5 = {
    "encoder-decoder/fast": [*FEW_BATCHES, *FEW_ANSWERS],
    "encoder-decoder/balanced": [*FEW_BATCHES, *FEW_WORDS[2:4], *FEW_ANSWERS],
    "encoder-decoder/best": [*FEW_BATCHES, *FEW_WORDS[2:4], *FEW_ANSWERS],
}
"""What makes a recipe short whose model is read from the hub."""

FEW_MASKED = ["evaluate.0.data.samples=2", "evaluate.0.data.sequence_length=16"]
FEW_MASKED += [setting.replace(".0.", ".1.") for setting in FEW_MASKED]
FEW_MASKED += ["calibration.samples=8", "calibration.sequence_length=16"]
FEW_SCORED = ["score.calibration.samples=4", "score.calibration.sequence_length=16"]
ON_PICO_ENCODER = {
    "encoder/fast": FEW_MASKED,
    "encoder/balanced": [*FEW_MASKED, *FEW_SCORED],
    "encoder/best": [*FEW_MASKED, *FEW_SCORED],
}
"""The same of an encoder that fills in masked words."""

ON_PICO_LLAVA = {"quickstart-llava": [*FEW_PICTURES, "evaluate.data.samples=4"]}
"""What makes a recipe short whose model and questions are joined of packages first."""


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


@pytest.fixture
def on_pico_llava(tmp_path):
    """What a recipe sets to be run on a pico LLaVA and questions in its words."""
    llava = FAMILIES["llava"]
    llava.adapter().save(llava.build(), tmp_path / "llava")
    images = sorted((ROOT / "examples" / "box" / "data" / "images").glob("*.png"))[:5]
    rows = [{"image": str(file), "question": "w1 ?", "answers": ["w2"], "kind": "yes/no"} for file in images]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows * 100), "utf-8")
    data = ("calibration", "score.calibration", "evaluate.data")
    paths = [f"{key}.path={tmp_path / 'questions.jsonl'}" for key in data]
    return [f"model.source={tmp_path / 'llava'}", *paths]


@pytest.mark.parametrize("name", FILES)
def test_the_first_line_runs_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = FILES[name].read_text("utf-8").splitlines()[0]
    verb = "sweep" if name in SWEEPS else "run"
    command = re.fullmatch(rf"# (?:pip install \S+ && )?ecoflap {verb} (\S+)", first)
    assert command, first
    assert find_recipe(command[1]).resolve() == FILES[name].resolve()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_valid(name, registry):
    recipe = load_recipe(RECIPES[name], registry=registry)
    assert recipe.sparsity is not None or recipe.pattern is not None


@pytest.mark.parametrize(
    "name", [name if name.startswith("quickstart") else pytest.param(name, marks=pytest.mark.slow) for name in SWEEPS]
)
def test_every_run_of_a_sweep_is_valid_with_its_model(name, registry, pico_llama_folder, tmp_path, on_pico_llava):
    """At one of its sparsities, the others being alike; on a pico model where its own is not among what tests need."""
    sweep = read_sweep(SWEEPS[name])
    assert all(0 < value.value.value < 1 for value in sweep.axes["sparsity"])
    set_ = ["sparsity=0.5", *(on_pico_llava if sweep.recipe.stem in ON_PICO_LLAVA else [])]
    if name == "box/gemma3-table":
        set_ += [f"model.source={pico_llama_folder}", *FEW_WORDS]
    cells = planned_runs(read_sweep(SWEEPS[name], set_), tmp_path / "sweep", registry)
    assert len(cells) == len(sweep.methods) * len(sweep.seeds or (0,))


def test_every_recipe_is_run_on_something():
    ran = {*ON_PICO, *ON_ITS_OWN, *ON_PICO_T5, *ON_PICO_ENCODER, *ON_PICO_LLAVA, *PAPER}
    assert ran == {*RECIPES}


LONGEST = (
    "language/best",
    "language/best-shortened",
    "encoder-decoder/balanced",
    "encoder-decoder/best",
    "encoder/best",
    "box/clip",
    "box/blip2",
    "box/blip2-best",
    "box/clip-best",
    "vision-language/balanced",
    "vision-language/best",
    "image-text/balanced",
    "image-text/best",
    "vision/balanced",
    "vision/best",
)
"""These are only validated here, and run by the slow tests."""


def each(names):
    return [pytest.param(name, marks=pytest.mark.slow if name in LONGEST else ()) for name in names]


@pytest.mark.parametrize("name", each(ON_PICO))
def test_the_recipe_runs_on_a_pico_model(name, registry, pico_llama_folder, tmp_path):
    run(name, registry, tmp_path / "run", [f"model.source={pico_llama_folder}", *ON_PICO[name]])


@pytest.mark.parametrize("name", each(ON_ITS_OWN))
def test_the_recipe_runs_on_the_model_in_the_box(name, registry, tmp_path):
    run(name, registry, tmp_path / "run", ON_ITS_OWN[name])


@pytest.mark.parametrize("name", each(ON_PICO_T5))
def test_the_recipe_runs_on_a_pico_t5(name, registry, tmp_path):
    pico_t5.adapter().save(pico_t5.build(), tmp_path / "t5")
    run(name, registry, tmp_path / "run", [f"model.source={tmp_path / 't5'}", *ON_PICO_T5[name]])


@pytest.mark.parametrize("name", each(ON_PICO_ENCODER))
def test_the_recipe_runs_on_a_pico_encoder(name, registry, tmp_path):
    pico_encoders.adapter().save(pico_encoders.build("bert", 2), tmp_path / "bert")
    run(name, registry, tmp_path / "run", [f"model.source={tmp_path / 'bert'}", *ON_PICO_ENCODER[name]])


@pytest.mark.parametrize("name", ON_PICO_LLAVA)
def test_the_recipe_runs_on_a_pico_llava(name, registry, on_pico_llava, tmp_path):
    run(name, registry, tmp_path / "run", [*on_pico_llava, *ON_PICO_LLAVA[name]])


def run(name, registry, folder, set_):
    done = ecoflap.run(RECIPES[name], folder=folder, set_=set_, registry=registry)
    assert done.report.kept == done.plan.keep == keep_count(done.plan.size, done.recipe.sparsity)
    assert (folder / "exports" / "safetensors" / "model.packed.safetensors").is_file()
