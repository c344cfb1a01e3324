"""Embeddings and heads that run packed because it was asked for: tied or not, of a class of their own, in every way."""

import copy
import inspect

import pytest
import torch
from exported import bits, half_pruned, outputs
from table import ALL_ROWS
from torch import nn

import ecoflap
from ecoflap.core.errors import ModelError
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.kernel.packed_parameters import PackedEmbedding
from ecoflap.exporters.safetensors import Safetensors

pytestmark = pytest.mark.filterwarnings("ignore:no matrix of this model runs packed")  # each is asked why

NAMES = [name for name in ("llama", "t5", "opt", "gemma3", "gemma3-text", "gpt2") if name in ALL_ROWS]
every_model = pytest.mark.parametrize("name", NAMES)


def words(model):
    """What of embeddings and heads is packed."""
    heads = {id(m.get_output_embeddings()) for m in model.modules() if hasattr(m, "get_output_embeddings")}
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding) or id(m) in heads}
    assert found
    return found


def held_as(module):
    """How it holds its weight; None where that is dense."""
    if isinstance(module, PackedEmbedding):
        return module.held["weight"].each.values
    return module.values if isinstance(module, PackedLinear) else None


@every_model
@pytest.mark.parametrize("values", ["exact", "int8", "int8a8"])
def test_they_are_packed_where_it_is_asked_for(name, values):
    pruned = half_pruned(name)
    before = copy.deepcopy(pruned.model)
    packing = ecoflap.pack_model(pruned.model, embeddings=values)
    assert {held_as(module) for module in words(pruned.model).values()} - {None} == {values}
    assert any(isinstance(module, PackedEmbedding) for module in words(pruned.model).values())
    assert "Embeddings and head are among them" in str(packing)
    before.load_state_dict(pruned.model.state_dict())
    most = {"exact": 1e-5, "int8": 2e-3, "int8a8": 0.15}[values]
    for ours, dense in zip(
        outputs(name, pruned.model, pruned.adapter), outputs(name, before, pruned.adapter), strict=True
    ):
        assert (ours - dense).abs().max() <= most * dense.abs().max()


@every_model
def test_a_file_is_read_so_too(name, tmp_path):
    pruned = half_pruned(name)
    if not ALL_ROWS[name].is_whole_on_disk:
        pytest.skip("its folder does not say what it is")
    Safetensors()(pruned, tmp_path)
    read = ecoflap.load_model(tmp_path, weights="packed", embeddings="packed-int8")
    ecoflap.pack_model(pruned.model, embeddings="int8")
    assert bits(read) == bits(pruned.model)
    assert {type(m) for m in words(read).values()} == {type(m) for m in words(pruned.model).values()}


@pytest.mark.skipif("llama" not in ALL_ROWS, reason="transformers here is too old for it to be saved and read again")
def test_a_tied_head_is_one_matrix_with_its_embedding(pico_llama, tmp_path):
    dense = pico_llama(tied=True)
    model = copy.deepcopy(dense)
    packing = ecoflap.pack_model(model, embeddings="exact")
    assert packing.packed == ["model.embed_tokens.weight"]
    assert model.model.embed_tokens.memory("weight").data_ptr() == model.lm_head.packed.data_ptr()
    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        assert (model(ids).logits - dense(ids).logits).abs().max() <= 1e-5 * dense(ids).logits.abs().max()
        said = model.generate(ids, max_new_tokens=5, do_sample=False)
        assert torch.equal(said, dense.generate(ids, max_new_tokens=5, do_sample=False))
    model.save_pretrained(tmp_path)
    again = type(dense).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, dense.lm_head.weight)


def test_they_stay_dense_where_it_is_not(pico_llama):
    tied, apart = pico_llama(tied=True), pico_llama()
    assert "it is an embedding" in ecoflap.pack_model(tied, values="int8").dense["model.embed_tokens.weight"]
    assert type(tied.lm_head) is nn.Linear
    packing = ecoflap.pack_model(apart, values="int8")
    assert type(apart.model.embed_tokens) is nn.Embedding
    assert "lm_head.weight" in packing.packed
    assert not ecoflap.pack_model(pico_llama()).packed


def test_what_cannot_be_is_said(pico_llama, tmp_path):
    with pytest.raises(ModelError, match=r"embeddings: .*int4.*exact"):
        inspect.unwrap(ecoflap.pack_model)(pico_llama(), embeddings="int4")
    with pytest.raises(ModelError, match="embeddings: packed goes with packed weights"):
        ecoflap.load_model(tmp_path, embeddings="packed")
    with pytest.raises(ModelError, match=r"embeddings: .*packed-int4.*packed-int8"):
        inspect.unwrap(ecoflap.load_model)(tmp_path, weights="packed", embeddings="packed-int4")
    model = nn.ModuleDict({"words": nn.Embedding(40, 60, max_norm=1.0)})
    assert "max_norm" in ecoflap.pack_model(model, embeddings="int8").dense["words.weight"]


@pytest.mark.parametrize("name", [name for name in ("marian", "pegasus") if name in ALL_ROWS])
@pytest.mark.parametrize("values", ["exact", "int8"])
def test_positions_that_their_class_computes_stay_dense(name, values, tmp_path):
    """Marian saves none: they are computed where the model is read again."""
    built = half_pruned(name).model
    built.save_pretrained(tmp_path / "dense")
    model = type(built).from_pretrained(tmp_path / "dense").eval()
    before = model.state_dict()
    packing = ecoflap.pack_model(model, values=values, embeddings=values)
    positions = [key for key in before if key.endswith("embed_positions.weight")]
    assert len(positions) == 2
    assert not {*positions} & {*packing.packed}
    assert any(isinstance(module, PackedEmbedding) for module in model.modules())
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in positions)
    model.save_pretrained(tmp_path / "packed")
    again = type(built).from_pretrained(tmp_path / "packed").state_dict()
    assert all(torch.equal(again[key], weight) for key, weight in model.state_dict().items())


@pytest.mark.skipif("marian" not in ALL_ROWS, reason="transformers here cannot build it")
def test_computed_positions_of_a_file_stay_dense(tmp_path):
    pruned = half_pruned("marian")
    Safetensors()(pruned, tmp_path)
    read = ecoflap.load_model(tmp_path, weights="packed-int8", embeddings="packed-int8")
    stored, now = ecoflap.load_packed(tmp_path), read.state_dict()
    assert any(isinstance(module, PackedEmbedding) for module in read.modules())
    assert all(torch.equal(now[key], stored[key]) for key in stored if key.endswith("embed_positions.weight"))


def test_a_class_that_only_changes_rows_is_trained():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    class Sinusoids(nn.Embedding):
        @staticmethod
        def _init_weight(out):
            return out

    model = nn.ModuleDict({"scaled": Scaled(40, 60), "positions": Sinusoids(40, 60), "words": nn.Embedding(40, 60)})
    assert set(ecoflap.pack_model(model, embeddings="int8").packed) == {"scaled.weight", "words.weight"}
    assert type(model["positions"]) is Sinusoids


@pytest.mark.skipif("llama" not in ALL_ROWS, reason="transformers here is too old for it")
def test_what_a_packed_model_takes_is_asked_of_its_buffers_too(pico_llama):
    model = pico_llama(tied=True)
    packing = ecoflap.pack_model(model, values="int8", embeddings="int8")
    norms = [key for key in model.state_dict() if "norm" in key]
    assert model.num_parameters() == sum(model.state_dict()[key].numel() for key in norms)
    beside = sum(one.nbytes for name, one in model.named_buffers() if "packed" not in name.rpartition(".")[2])
    assert model.get_memory_footprint() == packing.bytes_packed + beside + sum(one.nbytes for one in model.parameters())
