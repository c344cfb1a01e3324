"""Every model that the generic adapters take is inspected, planned and run from a saved folder, with its processor."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from table import DOUBLES, GENERIC_ROWS, marked
from transformers_version import is_before

import ecoflap
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.contracts.abilities import Generates, Generation, offers
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe


@pytest.mark.parametrize("name", marked(sorted(GENERIC_ROWS)))
def test_a_saved_model_is_inspected_planned_and_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    row = GENERIC_ROWS[name]
    count, size = 2 * row.batch_size, row.batch_size
    row.adapter().save(row.build(), tmp_path / "saved")
    recipe = {
        "version": 1,
        "model": {"source": "saved"},
        "calibration": {
            "use": "table:Samples",
            "row": name,
            "samples": count,
            "batch_size": size,
        },
        "sparsity": 0.5,
        "score": {"use": "zeroth_order", "samples": 2, "joint": True},
        "prune": "wanda",
    }
    registry = ecoflap.load_registry(allow_code=True)
    named, towers, *_ = inspection("saved", None, registry)
    planned = prepare(parse_recipe(recipe, registry=registry), registry, planning=True).anatomy
    done = ecoflap.run(recipe, folder=tmp_path / "run", registry=registry)
    assert [why.startswith("generic") for _, why in named.rows] == [True]
    assert tuple(line[0] for line in towers.rows) == row.towers
    prunable = {tower.name for tower in planned.towers if tower.prunable}
    assert {layer.name for block, layer in planned.layers() if block.tower in prunable} == set(done.plan.layers)
    assert done.plan.keep == done.plan.size // 2
    check_zeros(row.reload(tmp_path / "run" / "model"), row.adapter(), done)


def check_zeros(model: torch.nn.Module, adapter: Adapter, done: ecoflap.Run) -> None:
    """As many weights are zero in what was saved as the plan says, layer by layer."""
    layers = [layer for tower in adapter.towers(model) for block in tower.blocks for layer in adapter.layers(block)]
    for layer in layers:
        if layer.name in done.plan.layers:
            kept = done.plan.layers[layer.name].keep
            assert int(layer.weight.count_nonzero()) <= kept, layer.name


SAYING = [name for name, row in sorted(GENERIC_ROWS.items()) if offers(row.adapter(), Generates)]
SEEING = [name for name in SAYING if GENERIC_ROWS[name].samples(1)[0].image is not None]


@pytest.mark.parametrize("name", marked(SEEING, DOUBLES))
def test_a_text_is_the_same_whatever_else_is_in_the_batch(name: str):
    if name == "aya_vision" and is_before("5"):
        pytest.skip("the cache of Cohere 2 before transformers 5 says one thing and then another of the same text")
    row = GENERIC_ROWS[name]
    model, adapter, samples = row.build(), row.adapter(), row.samples(3)
    together = said(model, adapter, samples)
    assert together == [text for sample in samples for text in said(model, adapter, [sample])]


def said(model: torch.nn.Module, adapter: Adapter, samples: Sequence[ecoflap.Sample]) -> list[tuple[int, ...]]:
    made = adapter.generate(model, samples, Generation(max_new_tokens=4))  # type: ignore[attr-defined]
    return [one.tokens for one in made]
