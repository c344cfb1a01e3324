"""The pages that are held to the code: every hook, and the whole of the recipe's schema."""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ecoflap
from ecoflap import Sample, load_registry
from ecoflap.core.contracts import hookspecs
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.recipe.docs import recipe_schema
from ecoflap.core.registry.parameters import parameters_of
from ecoflap.core.registry.registry import load_registry_from

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "hooks.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (ecoflap_\w+)(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
SPECS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("ecoflap_")}


def test_every_hook_has_a_heading_with_exactly_its_signature():
    headings = re.findall(r"^## (ecoflap_.*)$", PAGE, flags=re.MULTILINE)
    signatures = [f"{name}{inspect.signature(spec)}".replace("'", "").replace('"', "") for name, spec in SPECS.items()]
    assert headings == signatures


@pytest.mark.parametrize("hook", SPECS)
def test_the_example_of_a_hook_is_a_plugin_that_loads(hook, tmp_path, monkeypatch):
    module = f"documented_{hook}"
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[hook], flags=re.DOTALL)
    (tmp_path / f"{module}.py").write_text(code)
    (tmp_path / "registry.yaml").write_text(f"version: 1\nplugins: {{documented: {module}}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry_from(tmp_path / "registry.yaml")
    if hook == "ecoflap_on_event":
        assert [name for name, _ in registry.observers()] == ["documented"]
    else:
        kind = hook.removeprefix("ecoflap_register_").removesuffix("s")
        (name,) = registry.names(kind)
        factory = registry.find(kind, name)
        parameters, _ = parameters_of(factory)
        needed = {parameter.name: None for parameter in parameters.values() if parameter.required}
        assert list(contract_problems(kind, factory(**needed), parameters)) == []


@dataclass(frozen=True)
class Windows:
    """Four windows of tokens, the same whenever they are asked for."""

    def __call__(self, adapter, model, note):
        generator = torch.Generator().manual_seed(8)
        yield from (Sample(tokens=torch.randint(3, 60, (16,), generator=generator)) for _ in range(4))


def test_the_scorer_of_single_weights_divides_a_budget(pico_llama, tmp_path):
    """Its numbers sum to one in each layer, and the plan keeps the largest of all, by a sort in float64."""
    (code,) = re.findall(r"^## A scorer of single weights.*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL)
    module = {"__name__": "documented_shares"}
    exec(code, module)
    recipe = {
        "version": 1, "sparsity": 0.6, "calibration": {"use": Windows}, "score": module["Shares"], "prune": "magnitude",
    }  # fmt: skip
    run = ecoflap.run(recipe, model=pico_llama(), folder=tmp_path / "run")
    files = sorted((run.folder / "scores").iterdir())
    numbers = {name: one.double() for file in files for name, one in load_file(file).items()}
    assert list(numbers) == list(run.plan.layers)
    assert all(float(one.sum()) == pytest.approx(1, abs=1e-5) for one in numbers.values())
    every = torch.cat([one.flatten() for one in numbers.values()]).sort(descending=True).values
    kept = {name: int((one >= every[run.plan.keep - 1]).sum()) for name, one in numbers.items()}
    assert {name: layer.keep for name, layer in run.plan.layers.items()} == kept


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_ins_of_each_hook_are_listed(kind):
    section = SECTIONS[f"ecoflap_register_{kind}s"]
    listed = re.findall(r"`(\w+)`", section[section.index("Built in:") :])
    assert listed == load_registry(installed=False).names(kind)


def test_recipe_page_is_what_the_code_says():
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_schema(), (
        "python -m ecoflap.core.recipe.docs > docs/recipe.md"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_optional_member_is_in_the_table_of_its_hook(kind):
    options = KINDS[kind].options
    own = {name for name in (*vars(options), *options.__annotations__) if not name.startswith("_")}
    rows = re.findall(r"^\| `(\w+)", SECTIONS[f"ecoflap_register_{kind}s"], flags=re.MULTILINE)
    assert set(rows) == own
    assert re.search(r"^\| `problems\(context\)` \|", PAGE, flags=re.MULTILINE)
