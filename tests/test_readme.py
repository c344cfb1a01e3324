"""The README and the guides are right: their Python runs, page by page, and their recipes are valid.

A block whose first line is a comment with a file's name is written to that file; other Python runs in the order it
stands in, in a folder with a model in ``my-model``. Recipes run on a few samples only.
"""

import re
from pathlib import Path

import pytest
import torch

import ecoflap
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.packed.save_packed import save_packed
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.sealing.sealed import flat
from ecoflap.core.text.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/adapters.md",
    "docs/compare.md",
    "docs/exports.md",
    "docs/kernel.md",
    "docs/methods.md",
    "docs/packed.md",
    "docs/plugins.md",
    "docs/run.md",
    "docs/scale.md",
)


SLOW = pytest.mark.slow
LONGEST = ("docs/exports.md",)


def blocks(page, *languages):
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in languages]


@pytest.fixture
def place(pico_llama, pico_tokenizer, monkeypatch, tmp_path):
    """The folder a reader is in; its model has a block alone, because pages export it many times."""
    monkeypatch.delenv("ECOFLAP_REGISTRY", raising=False)
    place = tmp_path / "place"
    pico_llama(layers=1).save_pretrained(place / "my-model", safe_serialization=True)
    pico_tokenizer.save_pretrained(place / "my-model")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    (place / "corpus.txt").write_text("the sense of an article is in that which it is of . " * 200)
    return place


@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW if page in LONGEST else ()) for page in PAGES])
def test_the_examples_of_a_page_work(page, place):
    namespace = {"__name__": "page"}
    for language, code in blocks(page, "python", "yaml"):
        named = re.match(r"# (\S+\.(?:py|yaml))\n", code)
        if named:
            (place / named[1]).write_text(re.sub(r"samples: \d+", "samples: 4", code) if language == "yaml" else code)
        elif "version: 1" in code:
            parse_recipe(code, registry=ecoflap.load_registry(installed=False), file=place / "recipe.yaml")
        else:
            exec(compile(code, page, "exec"), namespace)
    for file in place.glob("*.yaml"):
        if not {"plugins", "recipe"} & read_yaml(file.read_text(), str(file)).value.keys():
            parse_recipe(file.read_text(), registry=ecoflap.load_registry(installed=False), file=file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_reader_of_packed_files_reads_one(dtype, pico_llama, tmp_path):
    model = pico_llama(layers=2, dtype=dtype, tied=True)
    state = model.state_dict()
    masks = {name: torch.arange(w.numel()).reshape(w.shape) % 3 != 0 for name, w in state.items() if "mlp" in name}
    for name, mask in masks.items():
        state[name].mul_(mask)
    save_packed(tmp_path / "packed", state, masks)
    (code,) = (code for _, code in blocks("docs/packed.md", "python") if "def read" in code)
    namespace = {}
    exec(compile(code, "docs/packed.md", "exec"), namespace)
    found, expected = namespace["read"](tmp_path / "packed"), ecoflap.load_packed(tmp_path / "packed")
    assert list(found) == list(expected) == list(state)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == flat(tensor).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("adapter", "exporter")])
def test_every_method_is_described(kind):
    described = re.findall(r"^\*\*`(\w+)`\*\*", (ROOT / "docs" / "methods.md").read_text("utf-8"), flags=re.MULTILINE)
    assert set(ecoflap.load_registry(installed=False).names(kind)) <= set(described)


GUIDES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", GUIDES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8"))
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_what_ships_is_listed():
    table = dict(re.findall(r"^\| (\w+) \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE))
    registry = ecoflap.load_registry(installed=False)
    for kind in ("adapter", "scorer", "allocator", "pruner", "metric", "dataset", "evaluator", "exporter"):
        assert sorted(re.findall(r"`(\w+)`", table[kind])) == registry.names(kind)
