"""What exporters are told of a view before weights are read: its embeddings and heads, whatever else is larger."""

import pytest
from pico_t5 import build as build_t5

from ecoflap.core.needs.exports import exported_bytes, meanwhile_of, vocabulary_of
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run.prepare import prepare

WIDE = 96
"""Numbers inside of an MLP, so that its matrices are larger than embeddings of 64 words."""


def found(view, model):
    """The names of a view's embeddings and heads, each with whether it is looked up and multiplied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(one.parameter)]: (one.is_looked_up, one.is_multiplied) for one in vocabulary_of(view, model)}


@pytest.fixture
def wide(pico_llama):
    def make(*, tied):
        config = pico_llama(tied=tied).config
        config.update({"intermediate_size": WIDE})
        model = type(pico_llama())(config)
        model.tie_weights()
        return model

    return make


def test_embeddings_and_heads_are_found(wide):
    separate, tied = wide(tied=False), wide(tied=True)
    words = "model.embed_tokens.weight"
    assert found(separate, separate) == {words: (True, False), "lm_head.weight": (False, True)}
    assert found(tied, tied) == {words: (True, True)}
    assert found(separate.model, separate) == {words: (True, False)}
    assert found(separate.model.layers, separate) == {}


def test_a_view_has_those_that_it_reads():
    model = build_t5()
    assert found(model.encoder, model)["shared.weight"] == (True, False)
    assert found(model, model)["shared.weight"] == (True, True)


def test_a_head_is_planned_for_that_is_not_the_largest(wide, tmp_path):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    model, registry = wide(tied=False), load_registry()
    model.save_pretrained(tmp_path, safe_serialization=True)
    exporter = {"use": "onnx", "views": ["decoder"], "weights": "packed_op", "embeddings": "int8"}
    recipe = {"version": 1, "model": str(tmp_path), "sparsity": 0.5, "prune": "magnitude", "export": exporter}
    prepared = prepare(parse_recipe(recipe, registry=registry), registry)
    (part,) = prepared.recipe.export
    layers = sum(one.numel() for one in model.model.layers.parameters() if one.ndim == 2)
    others = sum(one.numel() for one in model.parameters()) - layers
    file = exported_bytes(part, prepared)
    assert meanwhile_of(prepared, False)["onnx"].memory == 45 * (layers + 64 * 32) + 8 * others + file
    assert file == 4 * (layers // 2) + layers // 8 + 4 * (others - 2 * 64 * 32) + in_int8()


def in_int8():
    """Bytes of 64 words of 32 numbers each, with a scale for each, in rows; and again in the kernel's order."""
    rows = 64 * 32 + 64 * 4
    return rows + (rows + 64 * 32 // 8 + 64)
