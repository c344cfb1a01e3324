"""A packed file is read into a model that runs from its packed weights, and nothing of it is made dense."""

import inspect
import json

import numpy as np
import pytest
import torch
from exported import bits, half_pruned, outputs, packed_names
from table import ROWS, marked

import ecoflap
from ecoflap.core.errors import FormatError, KernelError, ModelError
from ecoflap.core.kernel.packed_module import PackedLinear
from ecoflap.core.packed import forms, read_packed
from ecoflap.core.sealing.sealed import flat
from ecoflap.exporters.safetensors import Safetensors

pytestmark = pytest.mark.filterwarnings("ignore:no matrix of this model runs packed")  # each is asked why

WHOLE = [name for name in sorted(ROWS) if ROWS[name].is_whole_on_disk]
SMALL = Safetensors(shard_bytes=30_000)
needs_llama = pytest.mark.skipif("llama" not in WHOLE, reason="these families are not of this environment")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


def modules(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("name", marked(WHOLE))
def test_it_is_the_model_that_was_exported(name, folder):
    pruned = half_pruned(name)
    SMALL(pruned, folder)
    again = ecoflap.load_model(folder, weights="packed")
    packing = again.ecoflap_packing
    assert len({*packing.packed, *packing.dense}) == len(pruned.parameter_masks)
    assert set(packing.packed) <= packed_names(again)
    assert bits(again) == bits(pruned.model)
    kinds = {getattr(module, "packs", type(module)) for module in again.modules()}
    assert kinds - {PackedLinear} <= {type(module) for module in pruned.model.modules()}
    for ours, theirs in zip(
        outputs(name, again, pruned.adapter), outputs(name, pruned.model, pruned.adapter), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@needs_llama
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_another_type(dtype, folder):
    SMALL(half_pruned("llama"), folder)
    again = ecoflap.load_model(folder, dtype=dtype, weights="packed")
    assert again.ecoflap_packing.packed
    assert {module.dtype for module in modules(again).values()} == {dtype}
    assert bits(again) == bits(ecoflap.load_model(folder, dtype=dtype))


@needs_llama
@pytest.mark.filterwarnings("error:no matrix of this model runs packed")
@pytest.mark.parametrize("weights", ["packed", "packed-int8"])
def test_what_an_adapters_own_code_reads_dense_is_packed_afterwards(folder, monkeypatch, weights):
    pruned = half_pruned("llama")
    Safetensors()(pruned, folder)
    filled = ecoflap.load_model(folder, weights=weights)

    def load(self, source, dtype, device):
        model = ROWS["llama"].build()
        model.load_state_dict(ecoflap.load_packed(source.path))
        return model

    adapter = ROWS["llama"].adapter()
    monkeypatch.setattr(type(adapter), "load", load)
    again = ecoflap.load_model(folder, weights=weights, adapter=adapter)
    assert set(modules(again)) == set(modules(filled))
    assert bits(again) == bits(filled)
    assert set(again.ecoflap_packing.packed) == set(filled.ecoflap_packing.packed)


@needs_llama
def test_a_type_that_is_not_multiplied_stays_dense(folder):
    SMALL(half_pruned("llama"), folder)
    again = ecoflap.load_model(folder, dtype=torch.float64, weights="packed")
    assert not modules(again)
    assert set(again.ecoflap_packing.dense.values()) == {"float64 is not multiplied packed"}


@needs_llama
def test_all_of_it_is_in_one_piece_of_memory(folder):
    Safetensors()(half_pruned("llama"), folder)
    packed = [module.packed for module in modules(ecoflap.load_model(folder, weights="packed")).values()]
    assert len({one.untyped_storage().data_ptr() for one in packed}) == 1
    assert packed[0].untyped_storage().nbytes() == sum(one.numel() for one in packed)


@needs_llama
def test_no_matrix_is_made_dense(folder, monkeypatch):
    Safetensors()(half_pruned("llama"), folder)
    monkeypatch.setattr(read_packed, "_read_packed", None)
    monkeypatch.setattr(np, "zeros", None)
    assert modules(ecoflap.load_model(folder, weights="packed"))


@needs_llama
def test_without_a_library_too(folder, monkeypatch):
    pruned = half_pruned("llama")
    Safetensors()(pruned, folder)
    monkeypatch.setattr("ecoflap.core.kernel.matrix.opened", lambda: "there is none")
    again = ecoflap.load_model(folder, weights="packed")
    assert modules(again)
    assert bits(again) == bits(pruned.model)


@needs_llama
def test_what_cannot_be_is_refused(folder):
    SMALL(half_pruned("llama"), folder)
    unchecked = inspect.unwrap(ecoflap.load_model)  # as it is outside of tests, where nobody checks types
    with pytest.raises(ModelError, match=r"no way to hold weights named 'pakced'\. Did you mean 'packed'\?"):
        unchecked(folder, weights="pakced")
    with pytest.raises(ModelError, match="packed embeddings are multiplied on the CPU, and not on cuda"):
        ecoflap.load_model(folder, weights="packed", embeddings="packed", device="cuda")


@needs_llama
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_in_words(folder):
    SMALL(half_pruned("llama"), folder)
    for weights in ("dense", "packed"):
        with pytest.raises(ModelError, match="there is no GPU here for device=cuda"):
            ecoflap.load_model(folder, weights=weights, device="cuda")
    if not torch.backends.mps.is_available():
        with pytest.raises(ModelError, match="there is no GPU here for device=mps"):
            ecoflap.load_model(folder, device="mps")
    for device in ("meta", "mps"):
        with pytest.raises(ModelError, match=rf"on the CPU, or on cuda.*not on {device}\. Say device='cpu'"):
            ecoflap.load_model(folder, weights="packed", device=device)


@needs_llama
def test_a_path_that_cannot_be_taken_is_refused_before_anything_is_read(folder, take_path):
    take_path("nonsense")
    with pytest.raises(KernelError, match="ECOFLAP_KERNEL=nonsense"):
        ecoflap.load_model(folder, weights="packed")  # the folder is empty
    SMALL(half_pruned("llama"), folder)
    assert ecoflap.load_model(folder)


@needs_llama
def test_a_damaged_file_is_refused(folder):
    SMALL(half_pruned("llama"), folder)
    shard = min(folder.glob("*-of-*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(FormatError, match=shard.name):
        ecoflap.load_model(folder, weights="packed")
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="damaged"):
        ecoflap.load_model(folder, weights="packed")


@needs_llama
def test_a_mask_that_does_not_fit_is_named(folder, monkeypatch):
    SMALL(half_pruned("llama"), folder)

    def refuse(*_):
        raise KernelError("the mask keeps fewer weights than there are values")

    monkeypatch.setattr(forms, "pack_rows", refuse)
    with pytest.raises(FormatError, match=r"the packed weight model\.layers\.0\S+ is damaged: the mask keeps fewer"):
        ecoflap.load_model(folder, weights="packed")


@needs_llama
def test_a_run_does_not_begin_from_it(folder, tmp_path):
    """Pruning takes dense parameters: a recipe reads the same folder dense."""
    pruned = half_pruned("llama")
    Safetensors()(pruned, folder)
    model = ecoflap.load_model(folder, weights="packed")
    (config,) = folder.glob("config.json")
    assert json.loads(config.read_text())["architectures"] == [type(model).__name__]
    recipe = {"version": 1, "model": "given", "sparsity": 0.75, "prune": "magnitude", "allocate": "uniform"}
    with pytest.raises(ModelError):
        ecoflap.run(recipe, model=model, processor=pruned.adapter.processor, folder=tmp_path / "run")
    assert flat(next(iter(modules(model).values())).packed).numel()
