"""What exporters are told of a view before weights are read: its embeddings and heads, and what is not pruned."""

from math import ceil

import pytest
from pico_t5 import build as build_t5

from ecoflap.core.model.anatomy import Layer
from ecoflap.core.needs.exports import exported_bytes, meanwhile_of, unpruned_of, vocabulary_of
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

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


def test_matrices_are_found_that_are_not_pruned(wide):
    """No embedding and no head, nor what is pruned, nor what another view has."""
    model = wide(tied=False)
    layers = {name for name, one in model.named_parameters() if one.ndim == 2 and name.startswith("model.layers")}
    pruned = Layer("model.layers.0.mlp.up_proj.weight", model.model.layers[0].mlp.up_proj)
    assert {one.name for one in unpruned_of(model, model, [])} == layers
    assert {one.name for one in unpruned_of(model, model, [pruned])} == layers - {pruned.name}
    assert [one.name for one in unpruned_of(model.model.layers[0].mlp.down_proj, model, [])] == [
        "model.layers.0.mlp.down_proj.weight"
    ]


@pytest.mark.parametrize("values", ["auto", "int8"])
def test_a_tower_that_is_kept_is_planned_for(values, tmp_path):
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    model, registry = build_t5(), load_registry()
    model.save_pretrained(tmp_path, safe_serialization=True)
    exporter = {"use": "onnx", "views": ["encoder"], "weights": "packed_op", "values": values}
    recipe = {
        "version": 1, "model": str(tmp_path), "sparsity": 0.5, "prune": "magnitude", "towers": {"encoder": "keep"},
        "export": exporter,
    }  # fmt: skip
    prepared = prepare(parse_recipe(recipe, registry=registry), registry)
    (part,) = prepared.recipe.export
    matrices = [one for name, one in model.encoder.named_parameters() if ".layer." in name and one.ndim == 2]
    layers = [one for one in matrices if one.shape[1] > 4]  # not what biases by distance are looked up in
    others = sum(one.numel() for one in model.encoder.parameters()) - sum(one.numel() for one in layers)
    taken = sum(map(in_int8_as_product if values == "int8" else dense, layers))
    assert exported_bytes(part, prepared) == 4 * others + taken


def dense(weight):
    return 4 * weight.numel()


def in_int8_as_product(weight):
    """Bytes of whole numbers, all kept, masks that are filled up, and a scale for each output."""
    outputs, inputs = weight.shape
    return outputs * inputs + 64 + ceil(outputs / 16) * 16 * ceil(inputs / 32) * 32 // 8 + 4 * outputs
