"""What the rows of ``benchmarks/methods.py`` set in recipes, where the meaning of a figure hangs on it."""

from pathlib import Path

import pytest

import ecoflap

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("sparsity", ["0.6", "0.37"])
def test_with_jitter_each_layer_keeps_one_weight_less(sparsity, pico_llama, pico_tokenizer, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from methods import Row

    kept = []
    for row in (Row("blip2", "magnitude", sparsity, 0, jitter=jitter) for jitter in (False, True)):
        given = {"model": pico_llama(), "processor": pico_tokenizer, "folder": tmp_path / row.name}
        run = ecoflap.run({"version": 1, "prune": "magnitude"}, set_=row.settings(tmp_path), **given)
        kept.append({name: layer.keep for name, layer in run.plan.layers.items()})
    assert kept[1] == {name: keep - 1 for name, keep in kept[0].items()}
