"""A model is watched once for as long as it is the same, and anew when it is another or a part of it was exchanged."""

import gc
from collections import Counter
from typing import Any
from weakref import ref

import pytest
import torch
from table import GENERIC_ROWS
from torch import nn

from ecoflap.adapters.hubs.remembered import Remembered
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.model.anatomy import Source
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

PROBES = {
    "ecoflap.adapters.generic.generic_adapter.taken_apart_by",
    "ecoflap.adapters.generic.causal_lm.run_small",
    "ecoflap.adapters.generic.seq2seq_lm.run_small",
}


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each way of watching a model was gone."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> None:
        module, _, function = name.rpartition(".")
        own = getattr(__import__(module, fromlist=[function]), function)

        def counted(*arguments: Any) -> Any:
            counts[function] += 1
            return own(*arguments)

        monkeypatch.setattr(name, counted)

    for name in PROBES:
        counting(name)
    return counts


def named(counted: list[nn.Module]) -> Remembered[list[str]]:
    def find(model: nn.Module) -> list[str]:
        counted.append(model)
        return [name for name, _ in model.named_parameters()]

    return Remembered(find)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.append(nn.Linear(2, 2)),
        lambda model: model.__setitem__(0, nn.Linear(2, 2)),
        lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(2, 2))),
        lambda model: setattr(model[1], "weight", model[0].weight),
        lambda model: setattr(model[0], "bias", None),
    ],
    ids=["longer", "another module", "another parameter", "tied", "shorter"],
)
def test_a_model_that_was_changed_is_looked_at_anew(change):
    counted: list[nn.Module] = []
    look, model = named(counted), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert look(model) is look(model)
    with torch.no_grad():
        model[0].weight.zero_()  # what its weights are plays no part
    look(model.to(torch.float64))
    assert len(counted) == 1
    change(model)
    assert look(model) == [name for name, _ in model.named_parameters()]
    assert len(counted) == 2


def test_models_are_told_apart_and_let_go():
    models = [nn.Linear(2, 2), nn.Linear(2, 2, bias=False)]
    look = Remembered(lambda model: [name for name, _ in model.named_parameters()])
    assert list(map(look, models)) == [["weight", "bias"], ["weight"]]
    gone = [ref(model) for model in models]
    del models
    gc.collect()
    assert [one() for one in gone] == [None, None]


@pytest.mark.parametrize("name", [pytest.param("llava", marks=pytest.mark.slow), "gpt2", "bart", "bert"])
def test_an_adapter_watches_a_model_once_and_holds_none_that_is_gone(name: str, probes: Counter[str]):
    row = GENERIC_ROWS[name]
    adapter, model = row.adapter(), row.build()
    options = options_of(AdapterOptions, adapter)
    towers = [block.name for tower in adapter.towers(model) for block in tower.blocks]
    for _ in range(2):
        options.left_out(model)
        options.export_views(model)
        options.views_refused(model, "onnx")
        assert [block.name for tower in adapter.towers(model) for block in tower.blocks] == towers
    assert set(probes.values()) == {1}
    other = row.build_other()
    adapter.towers(other)
    assert probes["taken_apart_by"] == 2
    gone = [ref(model), ref(model.get_submodule(towers[0]))]
    del model
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_a_plan_watches_a_model_once(tmp_path, probes: Counter[str]):
    row = GENERIC_ROWS["llava"]
    row.adapter().save(row.build(), tmp_path / "model")
    recipe = {
        "version": 1,
        "model": str(tmp_path / "model"),
        "sparsity": 0.5,
        "allocate": "uniform",
        "prune": "magnitude",
        "include": [next(name for name in row.outside if name.endswith("lm_head"))],  # its place is another before 5
        "export": ["torchscript"],
    }
    registry = load_registry()
    plan_tables(parse_recipe(recipe, registry=registry), registry)
    assert probes == {"taken_apart_by": 1}


def test_a_model_that_is_loaded_again_is_another(tmp_path, probes: Counter[str]):
    row = GENERIC_ROWS["llava"]
    adapter, source = row.adapter(), Source("memory", model=row.build())
    assert adapter.load(source, None, "meta") is adapter.load(source, None, "cpu")
    adapter.towers(adapter.load(source, None, "meta"))
    adapter.towers(adapter.load(source, None, "cpu"))
    assert probes == {"taken_apart_by": 1}
    adapter.towers(row.build())
    assert probes == {"taken_apart_by": 2}
